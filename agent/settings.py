"""The settings of an agent: options, then NODE_AGENT_… variables, then those bootstrap saved."""

import ipaddress
import re
from collections.abc import Mapping
from os import environ
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from agent.roles import NodeRole, NodeType, parse_role, parse_type

PREFIX = "NODE_AGENT_"
DEFAULT_REGISTRY_URL = "http://127.0.0.1:9205/graphql"
DEFAULT_ROLE = "development-worker"
# The usual addresses of Ollama, vLLM, LM Studio, llama.cpp and Docker.
DEFAULT_SERVICES = (
    *(f"http://127.0.0.1:{port}" for port in (11434, 8000, 1234, 8080)),
    "unix:///var/run/docker.sock",
)
MAX_SERVICES = 16


class BadSettingError(Exception):
    """A setting is invalid; `name` is the option or variable that holds it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


def parse_graphql_url(text: str) -> str:
    """Return the address of the GraphQL endpoint; a base address gets `/graphql`.

    Raises: ValueError: the address is invalid, or contains a password, which would be logged.
    """
    expected = (
        "expected an address such as http://127.0.0.1:9205 or https://registry.example/graphql"
    )
    try:
        url = urlsplit(text.strip())
        usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable or url.fragment or re.search(r"\s", text.strip()):
        raise ValueError(expected)
    if url.username is not None:
        raise ValueError(
            "the address must not contain a password; pass the token as NODE_AGENT_TOKEN"
        )
    return url._replace(path="/graphql").geturl() if url.path in {"", "/"} else url.geturl()


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _normalize_role(text: str) -> str:
    return parse_role(text).word


def _split_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(dict.fromkeys(word for part in value.split(",") if (word := part.strip())))


def _check_services(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if addresses == ("none",):
        return ()
    if len(addresses) > MAX_SERVICES:
        raise ValueError(f"expected at most {MAX_SERVICES}")
    for address in addresses:
        if not _is_service_address(address):
            raise ValueError(
                "expected addresses such as http://127.0.0.1:11434 or"
                " unix:///var/run/docker.sock, without a password and separated by commas, or none"
            )
    return addresses


def _is_service_address(address: str) -> bool:
    try:
        url = urlsplit(address)
        if url.scheme == "unix":
            return not url.netloc and url.path.startswith("/")
        is_http = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        return False
    is_plain = url.username is None and not url.query and not url.fragment
    return bool(is_http) and is_plain and not re.search(r"\s", address)


def _make_absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("~ cannot be expanded: there is no home directory") from None


def _check_token(token: SecretStr) -> SecretStr:
    # It is sent in an HTTP header, which a line break left in by `cat` would end.
    if not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
        raise ValueError("a token is printable ASCII without spaces or line breaks")
    return token


Token = Annotated[SecretStr, AfterValidator(_check_token)]


class AgentSettings(BaseSettings):
    """The settings of an agent. Use `load_settings` to load them: it reports errors in one line."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True
    )

    registry_url: Annotated[str, AfterValidator(parse_graphql_url)] = DEFAULT_REGISTRY_URL
    role: Annotated[str, AfterValidator(_normalize_role)] = DEFAULT_ROLE
    """A role, or a role and a type in one word."""
    type: Annotated[NodeType | None, BeforeValidator(lambda v: parse_type(v) if v else None)] = None
    """Overrides the type in `role`."""
    labels: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_split_list)] = None
    """None leaves the node's labels in the registry as they are."""
    name: str | None = None
    state_dir: Annotated[Path, AfterValidator(_make_absolute)] | None = None
    token: Token | None = None
    """An enrolment token, or a token of this node."""
    ca_file: Annotated[Path, AfterValidator(_make_absolute)] | None = None
    certificate: Annotated[Path, AfterValidator(_make_absolute)] | None = None
    key: Annotated[Path, AfterValidator(_make_absolute)] | None = None
    transport: Literal["websocket", "http"] = "websocket"
    """The transport of heartbeats; if no websocket can be opened they are sent over HTTP."""
    services: Annotated[
        tuple[str, ...], NoDecode, AfterValidator(_check_services), BeforeValidator(_split_list)
    ] = DEFAULT_SERVICES
    """The addresses at which to look for models and Docker."""

    @property
    def node_role(self) -> NodeRole:
        return parse_role(self.role).role

    @property
    def node_type(self) -> NodeType:
        return self.type or parse_role(self.role).type or NodeType.WORKER

    def to_bootstrap_settings(self) -> dict[str, Any]:
        """Return the settings that apply to later starts by default, without the token."""
        return {
            "registry_url": self.registry_url,
            "role": f"{self.node_role}-{self.node_type}".lower(),
            "labels": self.labels,
            "name": self.name,
            "transport": self.transport,
            "services": ",".join(self.services) or "none",
            **{name: path and str(path) for name, path in self.collect_tls_files().items()},
        }

    def collect_tls_files(self) -> dict[str, Path | None]:
        return {"ca_file": self.ca_file, "certificate": self.certificate, "key": self.key}


def load_settings(
    options: Mapping[str, object],
    saved: Mapping[str, object] | None = None,
    *,
    source: str = "",
) -> AgentSettings:
    """Return the settings from the options, the environment and the saved settings, in this order.

    `options` are those of the command line, None where one was not given. `saved` are the saved
    settings, read from the file `source`.

    Raises: BadSettingError: a setting is invalid.
    """
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "role" in values and "type" not in values and (node_type := _find_type(values["role"])):
        values["type"] = node_type  # `--role production-router` must override NODE_AGENT_TYPE

    class Settings(AgentSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            saved_source = InitSettingsSource(settings_cls, init_kwargs=dict(saved or {}))
            return init_settings, env_settings, saved_source

    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        if field in options and options[field] is not None:
            name = f"--{field.replace('_', '-')}"
        elif environ.get(variable := f"{PREFIX}{field.upper()}"):
            name = variable
        else:
            name = f"{source}: {field}"
        cause = first.get("ctx", {}).get("error")
        problem = str(cause or first["msg"])
        if field != "token" and "@" not in str(first["input"]):
            problem += f", not {first['input']!r}"
        raise BadSettingError(name, problem) from None


def _find_type(role: str) -> NodeType | None:
    try:
        return parse_role(role).type
    except ValueError:
        return None  # the validator of `role` reports the error
