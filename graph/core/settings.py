"""The registry's configuration, read from environment variables that begin with NODE_REGISTRY_.

NODE_REGISTRY_SETTINGS_FILE names a file with further settings, which a list of processes or
containers does not reveal. Environment variables override the file.
"""

import ipaddress
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from db.core.enums import Role
from db.registry.liveness_rules import LivenessRules
from db.registry.node_limits import NodeLimits

ENV_PREFIX = "NODE_REGISTRY_"
RESERVED_CONNECTIONS = 2
"""Database connections kept for vital work per process: one for heartbeats, one for sweeps."""

TrustedNetworks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

MAX_COUNTED_COST = 10**9
"""Counting of a query's cost stops here, because nested fragments can multiply it without end."""

_MAPPED_PREFIX = 96
"""The length of the prefix of IPv6 addresses that map IPv4 addresses (RFC 4291)."""


class ConfigurationError(Exception):
    """A setting is missing or invalid; the message is one line that names it."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True)

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=9205, ge=0, le=65535)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    env: Literal["development", "production"] = "development"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    data_dir: Path = Path(platformdirs.user_data_dir("dagi-node-registry"))
    backup_key_file: Path | None = None
    dev_agent: bool = False
    workers: int = Field(default=1, ge=1, le=64)

    database_url: str | None = None
    db_host: str | None = None
    db_port: int = Field(default=5432, ge=1, le=65535)
    db_name: str = "node_registry"
    db_user: str = "node_registry"
    db_password: str | None = None
    db_pool_size: int = Field(default=10, ge=2, le=100)
    db_statement_timeout_seconds: float = Field(default=10, gt=0, le=3600)

    auth: Literal["required", "off"] | None = None
    let_anyone_do_anything: bool = False
    metrics_open: bool = False
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]")
    allowed_origins: list[str] = []
    trusted_proxies: Annotated[TrustedNetworks, NoDecode] = ()
    key_check_seconds: float = Field(default=2, gt=0, le=300)
    failed_logins_per_minute: float = Field(default=30, gt=0)
    requests_per_second: float = Field(default=1000, gt=0)
    requests_per_second_per_address: float = Field(default=20_000, gt=0)
    heartbeats_per_second: float = Field(default=5000, gt=0)
    registrations_per_minute: float = Field(default=6000, gt=0)
    request_seconds: float = Field(default=30, gt=0, le=3600)

    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_jwks: str | None = None
    jwt_role_claim: str = Field(default="roles", min_length=1)
    jwt_roles: dict[str, Role] = {}
    jwt_nodes_claim: str = Field(default="nodes", min_length=1)
    jwt_leeway_seconds: float = Field(default=30, ge=0, le=300)

    heartbeat_min_interval_seconds: float = Field(default=10, gt=0, le=86400)
    heartbeat_grace_seconds: float = Field(default=5, ge=0, le=86400)
    heartbeat_target_rate: float = Field(default=1000, gt=0)
    heartbeats_per_interval: float = Field(default=4, ge=1, le=1e6)
    node_changes_per_minute: float = Field(default=3, gt=0, le=1e6)
    node_bytes_per_day: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=2**62)
    sweep_interval_seconds: float = Field(default=2, gt=0, le=3600)

    protect_fraction: float = Field(default=0.5, gt=0, le=1)
    protect_min_nodes: int = Field(default=10, ge=1)
    protect_max_seconds: float = Field(default=600, ge=0)
    flap_max_transitions: int = Field(default=3, ge=1)
    flap_window_seconds: float = Field(default=3600, gt=0)
    flap_steady_seconds: float = Field(default=300, ge=0)
    remove_offline_after_seconds: dict[str, Annotated[float, Field(ge=0)]] = {}

    node_key_overlap_seconds: float = Field(default=7 * 86400, ge=0, le=3650 * 86400)
    heartbeat_stream_seconds: float = Field(default=1, gt=0, le=60)
    bookmark_interval_seconds: float = Field(default=15, gt=0, le=3600)
    heartbeat_log_max_age_seconds: float = Field(default=14 * 86400, gt=0, le=36500 * 86400)
    metrics_history_max_age_seconds: float = Field(default=400 * 86400, gt=0, le=36500 * 86400)
    max_database_bytes: int | None = Field(default=None, ge=1)
    min_free_disk_bytes: int = Field(default=1024**3, ge=0)
    change_log_max_rows: int = Field(default=1_000_000, ge=1000)
    change_log_max_age_seconds: float = Field(default=90 * 86400, gt=0)
    audit_retention_days: float = Field(default=400, ge=7, le=36500)
    listen_check_seconds: float = Field(default=5, gt=0, le=300)
    subscriber_max_lag: int = Field(default=10_000, ge=1)
    max_connections: int = Field(default=20_000, ge=1)
    max_unknown_connections_per_address: int = Field(default=2000, ge=1)
    max_subscriptions_per_caller: int = Field(default=10_000, ge=1)
    max_operations_per_connection: int = Field(default=100, ge=1)
    keepalive_seconds: float = Field(default=20, gt=0, le=600)
    stalled_reader_seconds: float = Field(default=20, gt=0, le=600)
    connection_init_seconds: float = Field(default=10, gt=0, le=300)
    first_request_seconds: float = Field(default=10, gt=0, le=300)
    max_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    max_query_tokens: int = Field(default=1000, ge=1)
    max_query_depth: int = Field(default=20, ge=1)
    max_query_aliases: int = Field(default=50, ge=0)
    max_query_directives: int = Field(default=50, ge=0)
    max_query_cost: int = Field(default=250_000, ge=1, lt=MAX_COUNTED_COST)
    introspection: bool | None = None
    graphiql: bool | None = None
    drain_seconds: float = Field(default=3, ge=0, le=300)
    shutdown_seconds: int = Field(default=10, ge=0)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _parse_trusted_proxies(cls, value: object) -> TrustedNetworks:
        """Parse networks, separated by commas or in a JSON list."""
        if isinstance(value, str):
            value = _split_list(value)
        if not isinstance(value, Iterable):
            raise PydanticCustomError("networks", "must be a list of networks")
        return tuple(map(_parse_network, value))

    @property
    def is_authentication_required(self) -> bool:
        """Whether callers need credentials: by default, except in development on loopback."""
        if self.auth is not None:
            return self.auth == "required"
        return self.env != "development" or not is_loopback(self.http_host)

    @property
    def database_connections(self) -> int:
        """The most connections that all workers open together; one of each worker's listens."""
        return self.workers * (self.db_pool_size + RESERVED_CONNECTIONS + 1)

    @property
    def external_database(self) -> URL | None:
        """The URL of the PostgreSQL to use, or None for the embedded server."""
        if self.database_url is not None:
            try:
                return make_url(self.database_url)
            except ArgumentError as error:
                raise ConfigurationError("NODE_REGISTRY_DATABASE_URL is not a URL") from error
        if self.db_host is None:
            return None
        return URL.create(
            "postgresql+asyncpg",
            self.db_user,
            self.db_password,
            self.db_host,
            self.db_port,
            self.db_name,
        )

    @property
    def is_schema_visible(self) -> bool:
        """Whether introspection works and errors suggest names, for both reveal the schema."""
        return self.env == "development" if self.introspection is None else self.introspection

    @property
    def has_graphiql(self) -> bool:
        return self.env == "development" if self.graphiql is None else self.graphiql

    def to_node_limits(self) -> NodeLimits:
        return NodeLimits(
            heartbeats_per_interval=self.heartbeats_per_interval,
            changes_per_minute=self.node_changes_per_minute,
            bytes_per_day=self.node_bytes_per_day,
        )

    def to_liveness_rules(self) -> LivenessRules:
        return LivenessRules(
            min_interval=self.heartbeat_min_interval_seconds,
            grace=self.heartbeat_grace_seconds,
            target_rate=self.heartbeat_target_rate,
            process_timeout=max(3 * self.sweep_interval_seconds, self.heartbeat_grace_seconds, 1),
            protect_fraction=self.protect_fraction,
            protect_min_nodes=self.protect_min_nodes,
            protect_max=self.protect_max_seconds,
            flap_transitions=self.flap_max_transitions,
            flap_window=self.flap_window_seconds,
            flap_steady=self.flap_steady_seconds,
            remove_offline_after=self.remove_offline_after_seconds,
        )


def _split_list(text: str) -> object:
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            raise PydanticCustomError("json", "must be a JSON list") from None
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a network; one of IPv6 addresses that map IPv4 addresses becomes one of these."""
    try:
        network = ipaddress.ip_network(str(value))
    except ValueError:
        raise PydanticCustomError(
            "network",
            "{value} is not a network such as 10.0.0.0/8 or 127.0.0.1",
            {"value": repr(value)},
        ) from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network


@lru_cache(maxsize=16)
def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(**overrides: Any) -> Settings:
    """Return the settings; an override that is not None wins over environment and settings file.

    Raises: ConfigurationError: a value is invalid (the message names the first).
    """
    provided = {name: value for name, value in overrides.items() if value is not None}
    file = find_settings_file()
    try:
        return Settings(_env_file=file, **provided)
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(f"{file}: there is no setting {name}") from error
        raise ConfigurationError(f"{ENV_PREFIX}{name}: {first['msg']}") from error


def find_settings_file() -> Path | None:
    """Return the path that NODE_REGISTRY_SETTINGS_FILE names, or None if it is unset.

    Raises: ConfigurationError: there is no such file.
    """
    name = os.environ.get(f"{ENV_PREFIX}SETTINGS_FILE")
    if not name:
        return None
    if not Path(name).is_file():
        raise ConfigurationError(f"{ENV_PREFIX}SETTINGS_FILE: there is no file {name}")
    return Path(name)
