import pytest

from agent.roles import NodeRole, NodeType, parse_role
from agent.settings import (
    DEFAULT_REGISTRY_URL,
    DEFAULT_SERVICES,
    MAX_SERVICES,
    AgentSettings,
    BadSettingError,
    load_settings,
    parse_graphql_url,
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in AgentSettings.model_fields:
        monkeypatch.delenv(f"NODE_AGENT_{field.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "role", "node_type"),
    [
        ("production-router", NodeRole.PRODUCTION, NodeType.ROUTER),
        ("Backup-GATEWAY", NodeRole.BACKUP, NodeType.GATEWAY),
        (" development ", NodeRole.DEVELOPMENT, None),
    ],
)
def test_role_setting_names_a_role_and_optionally_a_type(
    text: str, role: NodeRole, node_type: NodeType | None
) -> None:
    assert parse_role(text) == (role, node_type)


@pytest.mark.parametrize("text", ["", "router", "production-", "production-router-x", "prod"])
def test_invalid_role_setting_is_rejected_with_the_allowed_ones(text: str) -> None:
    with pytest.raises(ValueError, match="production, development or backup, alone or with router"):
        parse_role(text)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://host:9205", "http://host:9205/graphql"),
        ("http://host:9205/", "http://host:9205/graphql"),
        (" https://host/graphql ", "https://host/graphql"),
        ("https://host/registry/graphql", "https://host/registry/graphql"),
        ("http://[::1]:9205", "http://[::1]:9205/graphql"),
    ],
)
def test_base_address_of_the_registry_gets_the_graphql_path(address: str, url: str) -> None:
    assert parse_graphql_url(address) == url


@pytest.mark.parametrize(
    "address",
    ["", "host:9205", "ftp://host", "http://", "http://host:70000", "http://a b", "http://[::1"],
)
def test_invalid_registry_address_is_rejected(address: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as"):
        parse_graphql_url(address)


def test_defaults_are_a_development_worker_and_the_local_registry() -> None:
    settings = load_settings({})
    assert (settings.node_role, settings.node_type) == (NodeRole.DEVELOPMENT, NodeType.WORKER)
    assert settings.registry_url == DEFAULT_REGISTRY_URL
    assert settings.labels is None


def test_option_overrides_variable_and_variable_overrides_bootstrap_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_LABELS", "from-variable")
    monkeypatch.setenv("NODE_AGENT_NAME", "variable")
    bootstrap_settings = {"labels": ["remembered"], "name": "remembered", "role": "backup-gateway"}
    settings = load_settings({"name": "option", "labels": None}, bootstrap_settings)
    assert settings.name == "option"
    assert settings.labels == ("from-variable",)
    assert (settings.node_role, settings.node_type) == (NodeRole.BACKUP, NodeType.GATEWAY)


def test_type_in_the_role_option_overrides_the_type_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_TYPE", "gateway")
    assert load_settings({"role": "production-router"}).node_type is NodeType.ROUTER
    assert load_settings({"role": "production"}).node_type is NodeType.GATEWAY
    assert load_settings({"role": "backup-router", "type": "worker"}).node_type is NodeType.WORKER


def test_labels_are_split_at_commas_without_duplicates() -> None:
    assert load_settings({"labels": "router, gateway,,router"}).labels == ("router", "gateway")
    assert load_settings({"labels": ""}).labels == ()


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_AGENT_TOKEN", "")
    monkeypatch.setenv("NODE_AGENT_ROLE", "")
    settings = load_settings({})
    assert settings.token is None
    assert settings.node_role is NodeRole.DEVELOPMENT


def test_bootstrap_settings_are_read_back_and_contain_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_TOKEN", "the-token")
    bootstrap_settings = load_settings(
        {"role": "production", "type": "router", "labels": "a,b"}
    ).to_bootstrap_settings()
    assert "the-token" not in str(bootstrap_settings)
    settings = load_settings({}, bootstrap_settings)
    assert (settings.role, settings.labels) == ("production-router", ("a", "b"))


def test_invalid_value_is_reported_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSettingError, match=r"^--type: .* not 'x'$"):
        load_settings({"type": "x"})
    with pytest.raises(BadSettingError, match=r"^/state/bootstrap.json: role: "):
        load_settings({}, {"role": "x"}, source="/state/bootstrap.json")
    monkeypatch.setenv("NODE_AGENT_REGISTRY_URL", "nowhere")
    with pytest.raises(BadSettingError, match=r"^NODE_AGENT_REGISTRY_URL: .* not 'nowhere'$"):
        load_settings({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TOKEN", "se\ncret"), ("TOKEN", "secret "), ("REGISTRY_URL", "http://me:secret@host")],
)
def test_secret_is_not_repeated_in_the_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"NODE_AGENT_{variable}", value)
    with pytest.raises(BadSettingError, match=variable) as caught:
        load_settings({})
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (None, DEFAULT_SERVICES),
        ("none", ()),
        (
            "http://10.0.0.7:9000/, unix:///run/docker.sock",
            ("http://10.0.0.7:9000/", "unix:///run/docker.sock"),
        ),
    ],
)
def test_services_setting_replaces_the_default_addresses(
    value: str | None, addresses: tuple[str, ...]
) -> None:
    settings = load_settings({"services": value})
    assert settings.services == addresses
    assert load_settings({}, settings.to_bootstrap_settings()).services == addresses


@pytest.mark.parametrize(
    "value",
    [
        "11434",
        "unix:docker.sock",
        "unix://run/docker.sock",
        "http://user:secret@host",
        "http://host:99999",
        "http://host/?key=1",
        "none,http://host",
        ",".join(f"http://host-{number}" for number in range(MAX_SERVICES + 1)),
    ],
)
def test_invalid_service_address_is_rejected_without_its_password(value: str) -> None:
    with pytest.raises(BadSettingError, match=r"^--services: expected") as rejection:
        load_settings({"services": value})
    assert "secret" not in str(rejection.value)
