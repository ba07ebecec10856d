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
    ("word", "role", "node_type"),
    [
        ("production-router", NodeRole.PRODUCTION, NodeType.ROUTER),
        ("Backup-GATEWAY", NodeRole.BACKUP, NodeType.GATEWAY),
        (" development ", NodeRole.DEVELOPMENT, None),
    ],
)
def test_role_word_names_a_role_and_perhaps_a_type(
    word: str, role: NodeRole, node_type: NodeType | None
) -> None:
    assert parse_role(word) == (role, node_type)


@pytest.mark.parametrize("word", ["", "router", "production-", "production-router-x", "prod"])
def test_bad_role_word_is_answered_with_the_allowed_ones(word: str) -> None:
    with pytest.raises(ValueError, match="production, development or backup, alone or with router"):
        parse_role(word)


@pytest.mark.parametrize(
    ("written", "used"),
    [
        ("http://host:9205", "http://host:9205/graphql"),
        ("http://host:9205/", "http://host:9205/graphql"),
        (" https://host/graphql ", "https://host/graphql"),
        ("https://host/registry/graphql", "https://host/registry/graphql"),
        ("http://[::1]:9205", "http://[::1]:9205/graphql"),
    ],
)
def test_base_address_of_the_registry_gets_the_graphql_path(written: str, used: str) -> None:
    assert parse_graphql_url(written) == used


@pytest.mark.parametrize(
    "written",
    ["", "host:9205", "ftp://host", "http://", "http://host:70000", "http://a b", "http://[::1"],
)
def test_address_that_is_none_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="expected an address such as"):
        parse_graphql_url(written)


def test_machine_that_says_nothing_is_a_development_worker_on_the_local_registry() -> None:
    settings = load_settings({})
    assert (settings.node_role, settings.node_type) == (NodeRole.DEVELOPMENT, NodeType.WORKER)
    assert settings.registry_url == DEFAULT_REGISTRY_URL
    assert settings.labels is None


def test_option_goes_before_variable_and_variable_before_what_bootstrap_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_LABELS", "from-variable")
    monkeypatch.setenv("NODE_AGENT_NAME", "variable")
    remembered = {"labels": ["remembered"], "name": "remembered", "role": "backup-gateway"}
    settings = load_settings({"name": "option", "labels": None}, remembered)
    assert settings.name == "option"
    assert settings.labels == ("from-variable",)
    assert (settings.node_role, settings.node_type) == (NodeRole.BACKUP, NodeType.GATEWAY)


def test_type_in_the_role_option_goes_before_the_type_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_TYPE", "gateway")
    assert load_settings({"role": "production-router"}).node_type is NodeType.ROUTER
    assert load_settings({"role": "production"}).node_type is NodeType.GATEWAY
    assert load_settings({"role": "backup-router", "type": "worker"}).node_type is NodeType.WORKER


def test_labels_are_split_at_commas_and_kept_once_each() -> None:
    assert load_settings({"labels": "router, gateway,,router"}).labels == ("router", "gateway")
    assert load_settings({"labels": ""}).labels == ()


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_AGENT_TOKEN", "")
    monkeypatch.setenv("NODE_AGENT_ROLE", "")
    settings = load_settings({})
    assert settings.token is None
    assert settings.node_role is NodeRole.DEVELOPMENT


def test_what_bootstrap_was_told_can_be_read_back_and_holds_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NODE_AGENT_TOKEN", "the-token")
    told = load_settings(
        {"role": "production", "type": "router", "labels": "a,b"}
    ).to_bootstrap_settings()
    assert "the-token" not in str(told)
    again = load_settings({}, told)
    assert (again.role, again.labels) == ("production-router", ("a", "b"))


def test_bad_value_is_named_by_the_place_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
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
    ("written", "used"),
    [
        (None, DEFAULT_SERVICES),
        ("none", ()),
        (
            "http://10.0.0.7:9000/, unix:///run/docker.sock",
            ("http://10.0.0.7:9000/", "unix:///run/docker.sock"),
        ),
    ],
)
def test_services_are_looked_for_where_they_are_said_to_be(
    written: str | None, used: tuple[str, ...]
) -> None:
    settings = load_settings({"services": written})
    assert settings.services == used
    assert load_settings({}, settings.to_bootstrap_settings()).services == used


@pytest.mark.parametrize(
    "written",
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
def test_service_that_cannot_be_asked_is_refused_without_its_password(written: str) -> None:
    with pytest.raises(BadSettingError, match=r"^--services: expected") as refused:
        load_settings({"services": written})
    assert "secret" not in str(refused.value)
