"""The tables of the registry. The migrations build the same; a test compares the two."""

from datetime import date, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, JSONB
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlmodel import Field, SQLModel

from db.core.enum_type import make_enum_type
from db.core.enums import (
    NodeRole,
    NodeStatus,
    NodeType,
    ProfileType,
    RegistryMode,
    Role,
    StatusReason,
)

_TIMESTAMP: Any = DateTime(timezone=True)
_JSON_OBJECT: Any = JSONB(none_as_null=True)
_DEFAULT_NOW = {"server_default": text("now()")}
_DEFAULT_NEW_UUID = {"server_default": text("gen_random_uuid()")}
_DEFAULT_EMPTY = {"server_default": text("'{}'")}
_DEFAULT_TRUE = {"server_default": text("true")}
_DEFAULT_ONE = {"server_default": text("1")}


class Table(SQLModel):
    """The base of all tables.

    Names constraints as PostgreSQL itself does, so that the plain SQL of the migrations agrees.
    """

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
            "ck": "%(table_name)s_%(constraint_name)s_check",
        }
    )


class Node(Table, table=True):
    """The current state of a node.

    Every heartbeat updates this row. No index covers a column that a heartbeat changes, so that the
    update can be HOT; these columns come last, because the WAL holds the row from the first changed
    byte on. The row of a deregistered node remains, with `removed_at`, because its history refers
    to it: every query for nodes has `removed_at IS NULL`.
    """

    __tablename__ = "nodes"
    __table_args__ = (
        Index(
            "nodes_node_id_key", "node_id", unique=True, postgresql_where=text("removed_at IS NULL")
        ),
        Index("nodes_boot_id_idx", "boot_id", postgresql_where=text("removed_at IS NULL")),
        Index(
            "nodes_capabilities_idx",
            "capabilities",
            postgresql_using="gin",
            postgresql_ops={"capabilities": "jsonb_path_ops"},
        ),
        Index("nodes_labels_idx", "labels", postgresql_using="gin"),
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: UUID = Field(primary_key=True, sa_column_kwargs=_DEFAULT_NEW_UUID)
    node_id: str = Field(sa_type=Text)
    node_name: str = Field(sa_type=Text)
    node_role: NodeRole = Field(sa_type=make_enum_type(NodeRole, "node_role"))
    node_type: NodeType = Field(sa_type=make_enum_type(NodeType, "node_type"))
    ip_address: str | None = Field(sa_type=INET)
    local_ip: str | None = Field(sa_type=INET)
    hostname: str | None = Field(sa_type=Text)
    status: NodeStatus = Field(sa_type=make_enum_type(NodeStatus, "status"))
    registered_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    updated_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    metadata_: dict[str, Any] = Field(
        sa_type=_JSON_OBJECT, sa_column_kwargs={"name": "metadata", **_DEFAULT_EMPTY}
    )
    labels: list[str] = Field(sa_type=ARRAY(Text), sa_column_kwargs=_DEFAULT_EMPTY)
    capabilities: dict[str, Any] = Field(sa_type=_JSON_OBJECT, sa_column_kwargs=_DEFAULT_EMPTY)
    status_reason: StatusReason = Field(sa_type=make_enum_type(StatusReason, "status_reason"))
    status_since: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    maintenance_until: datetime | None = Field(sa_type=_TIMESTAMP)
    removed_at: datetime | None = Field(sa_type=_TIMESTAMP)
    boot_id: str | None = Field(sa_type=Text, description="The agent's run that holds the id.")
    boot_since: datetime | None = Field(sa_type=_TIMESTAMP)
    heartbeat_interval_seconds: float = Field(
        sa_type=Double,
        sa_column_kwargs={"server_default": text("0")},
        description="The interval that the last reply set.",
    )
    reported_degraded: bool = Field(
        sa_column_kwargs={"server_default": text("false")}, description="The agent's own report."
    )
    heard_at: datetime | None = Field(
        sa_type=_TIMESTAMP, description="Time of the last registration or heartbeat."
    )
    last_sequence: int | None = Field(
        sa_type=BigInteger, description="Sequence of the last heartbeat of boot_id."
    )
    last_heartbeat_id: int | None = Field(
        sa_type=BigInteger,
        description="Row in heartbeat_log, which has the metrics.",
    )
    steady_since: datetime | None = Field(
        sa_type=_TIMESTAMP,
        description="Time of the last late heartbeat, while FLAPPING.",
    )
    last_heartbeat: datetime | None = Field(sa_type=_TIMESTAMP)
    # `db.registry.node_limits` says what these count.
    heartbeats_paid_until: datetime | None = Field(sa_type=_TIMESTAMP)
    changes_paid_until: datetime | None = Field(sa_type=_TIMESTAMP)
    written_on: date | None = Field(sa_type=Date, description="Day (UTC) of `written_bytes`.")
    written_bytes: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})


class NodeProfile(Table, table=True):
    __tablename__ = "node_profiles"
    __table_args__ = (UniqueConstraint("node_id", "profile_name"),)

    id: UUID = Field(primary_key=True, sa_column_kwargs=_DEFAULT_NEW_UUID)
    node_id: UUID = Field(foreign_key="nodes.id", ondelete="CASCADE")
    profile_name: str = Field(sa_type=Text)
    profile_type: ProfileType = Field(sa_type=make_enum_type(ProfileType, "profile_type"))
    config: dict[str, Any] = Field(sa_type=_JSON_OBJECT, sa_column_kwargs=_DEFAULT_EMPTY)
    enabled: bool = Field(sa_column_kwargs=_DEFAULT_TRUE)
    version: int = Field(sa_column_kwargs=_DEFAULT_ONE)
    created_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    updated_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)


class RoleProfile(Table, table=True):
    """A profile that every node of a role and type inherits."""

    __tablename__ = "role_profiles"
    __table_args__ = (UniqueConstraint("node_role", "node_type", "profile_name"),)

    id: UUID = Field(primary_key=True, sa_column_kwargs=_DEFAULT_NEW_UUID)
    node_role: NodeRole = Field(sa_type=make_enum_type(NodeRole, "node_role"))
    node_type: NodeType = Field(sa_type=make_enum_type(NodeType, "node_type"))
    profile_name: str = Field(sa_type=Text)
    profile_type: ProfileType = Field(sa_type=make_enum_type(ProfileType, "profile_type"))
    config: dict[str, Any] = Field(sa_type=_JSON_OBJECT, sa_column_kwargs=_DEFAULT_EMPTY)
    enabled: bool = Field(sa_column_kwargs=_DEFAULT_TRUE)
    version: int = Field(sa_column_kwargs=_DEFAULT_ONE)
    created_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    updated_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)


class Heartbeat(Table, table=True):
    """An accepted heartbeat. Partitioned by day, so that retention drops whole days.

    There is no foreign key: the statement that inserts a row has just locked its node. Checking
    each row makes that statement a tenth slower (PostgreSQL 18, batches of 1,000 on 10,000 nodes),
    and creating the partition of a day would lock `nodes` against every heartbeat.
    """

    __tablename__ = "heartbeat_log"
    __table_args__ = (
        Index(None, "node_id", "timestamp", "id"),
        {"postgresql_partition_by": "RANGE (timestamp)"},
    )

    timestamp: datetime = Field(primary_key=True, sa_type=_TIMESTAMP)
    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),))
    node_id: UUID
    status: NodeStatus = Field(sa_type=make_enum_type(NodeStatus, "status"))
    metrics: dict[str, Any] = Field(sa_type=_JSON_OBJECT, sa_column_kwargs=_DEFAULT_EMPTY)


class RolledUpHour(Table, table=True):
    """An hour of heartbeat_log that is in metrics_history, with the number of its heartbeats."""

    __tablename__ = "rolled_up_hours"

    hour: datetime = Field(primary_key=True, sa_type=_TIMESTAMP)
    heartbeats: int = Field(sa_type=BigInteger)


class StatusChange(Table, table=True):
    """An entry of the change log. Revisions have no gap and the order of the commits."""

    __tablename__ = "status_changes"
    __table_args__ = (Index(None, "node_id", "revision"),)

    revision: int = Field(
        primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False}
    )
    node_id: UUID = Field(foreign_key="nodes.id")
    previous_status: NodeStatus | None = Field(
        sa_type=make_enum_type(NodeStatus, "previous_status")
    )
    status: NodeStatus = Field(sa_type=make_enum_type(NodeStatus, "status"))
    reason: StatusReason = Field(sa_type=make_enum_type(StatusReason, "reason"))
    note: str | None = Field(sa_type=Text)
    actor: str = Field(sa_type=Text)
    changed_at: datetime = Field(sa_type=_TIMESTAMP)


class RegistryState(Table, table=True):
    """The single row from which every status change takes its revision."""

    __tablename__ = "registry_state"
    __table_args__ = (CheckConstraint("id", name="id"),)

    id: bool = Field(primary_key=True, sa_column_kwargs=_DEFAULT_TRUE)
    revision: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": text("0")})
    changed_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    mode: RegistryMode = Field(
        sa_type=make_enum_type(RegistryMode, "mode"), sa_column_kwargs={"server_default": "normal"}
    )
    mode_reason: str | None = Field(sa_type=Text)
    mode_since: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    lease_floor: datetime = Field(
        sa_type=_TIMESTAMP,
        sa_column_kwargs=_DEFAULT_NOW,
        description="Time before which no lease begins.",
    )


class RegistryProcess(Table, table=True):
    """A running process of the registry. A process that stops in order deletes its row."""

    __tablename__ = "registry_processes"

    id: UUID = Field(primary_key=True)
    started_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    seen_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)


class AuditEntry(Table, table=True):
    """An action or a rejected attempt. `before` is None of what is new, `after` of what is gone.

    Each index serves one filter, newest first. The role that serves may only insert and select.
    """

    __tablename__ = "audit_log"
    __table_args__ = (
        Index(None, "recorded_at", "id"),
        Index(None, "actor", "recorded_at", "id"),
        Index(None, "action", "recorded_at", "id"),
        Index(None, "subject", "recorded_at", "id"),
        Index(
            "audit_log_refused_idx",
            *("outcome", "recorded_at", "id"),
            postgresql_where=text("outcome <> 'ok'"),
        ),
    )

    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_args=(Identity(always=True),))
    recorded_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    actor: str = Field(sa_type=Text)
    address: str | None = Field(sa_type=Text, description="IP address of the client.")
    action: str = Field(sa_type=Text, description="The action, e.g. profile.set.")
    subject: str = Field(sa_type=Text, description="Name of what the action is about.")
    outcome: str = Field(
        sa_type=Text,
        sa_column_kwargs={"server_default": text("'ok'")},
        description="ok, or the code of the error with which the action was rejected.",
    )
    request_id: str | None = Field(sa_type=Text, description="The request's id in the log.")
    peer_address: str | None = Field(
        sa_type=Text, description="IP address of the direct connection, e.g. a proxy's."
    )
    before: dict[str, Any] | None = Field(sa_type=_JSON_OBJECT)
    after: dict[str, Any] | None = Field(sa_type=_JSON_OBJECT)
    count: int = Field(
        sa_type=BigInteger,
        sa_column_kwargs=_DEFAULT_ONE,
        description="How often this happened from `recorded_at` to `last_recorded_at`.",
    )
    last_recorded_at: datetime | None = Field(
        sa_type=_TIMESTAMP, description="When it last happened; none: only once."
    )


class Token(Table, table=True):
    """A token or an enrolment token, without its secret. It is purged a while after it ended.

    `replaces` and `enrolled_by` may refer to rows that are purged.
    """

    __tablename__ = "tokens"
    __table_args__ = (
        UniqueConstraint("public_id"),
        Index("tokens_nodes_idx", "nodes", postgresql_using="gin"),
        Index(None, "replaces"),
        CheckConstraint("uses_left >= 0", name="uses_left"),
        {"postgresql_with": {"fillfactor": 80}},
    )

    id: UUID = Field(primary_key=True, sa_column_kwargs=_DEFAULT_NEW_UUID)
    public_id: str = Field(sa_type=Text, description="The public part of its text.")
    secret_hash: bytes = Field(sa_type=LargeBinary, repr=False)
    name: str = Field(sa_type=Text, description="Name of its users in the logs.")
    role: Role = Field(sa_type=make_enum_type(Role, "role"))
    nodes: list[str] = Field(
        sa_type=ARRAY(Text),
        sa_column_kwargs=_DEFAULT_EMPTY,
        description="Ids of the nodes that an agent speaks for.",
    )
    created_at: datetime = Field(sa_type=_TIMESTAMP, sa_column_kwargs=_DEFAULT_NOW)
    created_by: str = Field(sa_type=Text)
    expires_at: datetime | None = Field(sa_type=_TIMESTAMP)
    revoked_at: datetime | None = Field(sa_type=_TIMESTAMP)
    last_used_at: datetime | None = Field(sa_type=_TIMESTAMP)
    lifetime: timedelta | None = Field(
        sa_type=Interval, description="Lifetime of the tokens that rotation or enrolment issues."
    )
    replaces: UUID | None = Field(description="The token that was rotated.")
    enrolled_by: UUID | None = Field(description="The enrolment token that it stems from.")
    uses_left: int | None = Field(description="Nodes that the enrolment token may still enrol.")
    node_role: NodeRole | None = Field(
        sa_type=make_enum_type(NodeRole, "node_role"),
        description="Role that its nodes are bound to; none: any.",
    )
    node_type: NodeType | None = Field(
        sa_type=make_enum_type(NodeType, "node_type"),
        description="Type that its nodes are bound to; none: any.",
    )
    labels: list[str] | None = Field(
        sa_type=ARRAY(Text), description="Labels that its nodes may have; none: any."
    )


MEASURES = (
    "cpu_percent",
    "memory_percent",
    "memory_available_mb",
    "disk_percent",
    "load_average",
    "gpu_utilization_percent",
    "gpu_memory_free_mb",
    "gpu_temperature_celsius",
)
"""The metrics that are rolled up by the hour, each to its minimum, average and maximum."""

METRICS_HISTORY = sqlalchemy.Table(
    "metrics_history",
    Table.metadata,
    Column("node_id", Uuid, primary_key=True),
    Column("hour", _TIMESTAMP, primary_key=True),
    Column("heartbeats", Integer, nullable=False),
    *(
        Column(f"{measure}_{part}", Double)
        for measure in MEASURES
        for part in ("min", "avg", "max")
    ),
    postgresql_partition_by="RANGE (hour)",
)
"""The metrics of each node by the hour, partitioned by month."""


def _get_columns(table: type[Table]) -> ReadOnlyColumnCollection[str, Column[Any]]:
    return Table.metadata.tables[str(table.__tablename__)].c


# Statements use these columns, because SQLModel types its attributes as the values of a row.
NODE = _get_columns(Node)
NODE_PROFILE = _get_columns(NodeProfile)
ROLE_PROFILE = _get_columns(RoleProfile)
HEARTBEAT = _get_columns(Heartbeat)
STATUS_CHANGE = _get_columns(StatusChange)
REGISTRY_STATE = _get_columns(RegistryState)
TOKEN = _get_columns(Token)
AUDIT_ENTRY = _get_columns(AuditEntry)
