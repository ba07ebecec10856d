"""The change log, and the only place that changes a node's status.

A transaction that changes a status locks the node's row first and calls `apply_transitions` last:
the log's counter is one row, whose lock puts the changes of all processes in the order of their
commits.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
from sqlalchemy import ARRAY, Enum, Uuid, any_, func, inspect, literal, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.identity import REGISTRY_ACTOR
from db.core.tables import NODE, REGISTRY_STATE, STATUS_CHANGE, Node, RegistryState, StatusChange
from db.core.turns import Steps, take_turns
from db.registry.node_filter import NodeFilter

CHANNEL = "node_registry_changes"
"""The channel of NOTIFY; the payload is the newest revision."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A status change to be made; `previous` is None for a new node."""

    node: UUID
    previous: NodeStatus | None
    status: NodeStatus
    reason: StatusReason
    actor: str = REGISTRY_ACTOR
    note: str | None = None


_APPLY = text(f"""
WITH transition AS (
    SELECT * FROM unnest(CAST(:nodes AS uuid[]), CAST(:previous AS text[]), CAST(:status AS text[]),
                         CAST(:reason AS text[]), CAST(:note AS text[]), CAST(:actor AS text[]))
        WITH ORDINALITY AS t (node, previous, status, reason, note, actor, ordinal)
), counter AS (
    UPDATE registry_state
    SET revision = revision + :count, changed_at = greatest(changed_at, registry_now())
    RETURNING revision, changed_at
), moved AS (
    UPDATE nodes
    SET status = t.status, status_reason = t.reason, updated_at = c.changed_at,
        maintenance_until = CASE WHEN t.status = 'maintenance' THEN maintenance_until END,
        status_since = CASE WHEN t.previous = t.status THEN status_since ELSE c.changed_at END,
        steady_since = CASE WHEN t.reason = 'flapping' THEN registry_now() ELSE steady_since END
    FROM transition t, counter c
    WHERE nodes.id = t.node
), logged AS (
    INSERT INTO status_changes
        (revision, node_id, previous_status, status, reason, note, actor, changed_at)
    SELECT c.revision - :count + t.ordinal, t.node, t.previous, t.status, t.reason, t.note, t.actor,
           c.changed_at
    FROM transition t, counter c
)
SELECT revision, pg_notify('{CHANNEL}', revision::text) FROM counter
""")  # noqa: S608  # the channel's name is ours


async def apply_transitions(session: AsyncSession, transitions: Sequence[Transition]) -> int:
    """Make the changes under the next revisions, in order, and return the last revision."""
    row = await session.execute(
        _APPLY,
        {
            "count": len(transitions),
            "nodes": [t.node for t in transitions],
            "previous": [t.previous for t in transitions],
            "status": [t.status for t in transitions],
            "reason": [t.reason for t in transitions],
            "note": [t.note for t in transitions],
            "actor": [t.actor for t in transitions],
        },
    )
    revision: int = row.scalar_one()
    return revision


async def read_state(session: AsyncSession) -> RegistryState:
    return (await session.scalars(select(RegistryState))).one()


async def read_revision(session: AsyncSession) -> int:
    revision: int = (await session.scalars(select(REGISTRY_STATE.revision))).one()
    return revision


_LAG = text("""
SELECT s.revision,
       CASE WHEN s.revision <= :read THEN 0
            ELSE extract(epoch FROM registry_now() - coalesce(next.changed_at, s.changed_at)) END
FROM registry_state s
LEFT JOIN status_changes next ON next.revision = :read + 1
""")


async def measure_lag(session: AsyncSession, read: int) -> tuple[int, float]:
    """Return the newest revision, and the age in seconds of the oldest change after `read`."""
    revision, seconds = (await session.execute(_LAG, {"read": read})).one()
    return revision, float(seconds)


async def read_revision_range(session: AsyncSession) -> range:
    """Return the revisions that the log holds.

    The range of a log that was trimmed to nothing is empty and starts at the next revision.
    """
    oldest = select(func.min(STATUS_CHANGE.revision)).scalar_subquery()
    newest = REGISTRY_STATE.revision
    row = (await session.execute(select(func.coalesce(oldest, newest + 1), newest))).one()
    return range(row[0], row[1] + 1)


@dataclass(frozen=True, slots=True)
class LoggedChange:
    """A row of the change log with its node's id."""

    revision: int
    node: UUID
    node_id: str
    previous_status: NodeStatus | None
    status: NodeStatus
    reason: StatusReason
    note: str | None
    actor: str
    changed_at: datetime


SELECT_CHANGES = select(
    STATUS_CHANGE.revision,
    STATUS_CHANGE.node_id,
    NODE.node_id,
    STATUS_CHANGE.previous_status,
    STATUS_CHANGE.status,
    STATUS_CHANGE.reason,
    STATUS_CHANGE.note,
    STATUS_CHANGE.actor,
    STATUS_CHANGE.changed_at,
).join_from(StatusChange, Node, STATUS_CHANGE.node_id == NODE.id)
"""Selects the fields of LoggedChange, in order."""


_NODE_COLUMNS = {attribute.key: attribute.columns[0] for attribute in inspect(Node).column_attrs}
_CHANGE_COLUMNS = (
    *("logged.revision", "logged.node_id", "named.node_id", "logged.previous_status"),
    *("logged.status", "logged.reason", "logged.note", "logged.actor", "logged.changed_at"),
)

# A row of a node may be large, so it comes only with the last of the node's changes.
_LIST_AFTER = f"""
SELECT {", ".join(_CHANGE_COLUMNS)},
       {", ".join(f"current.{column.name}" for column in _NODE_COLUMNS.values())}
FROM (
    SELECT slice.*, max(revision) OVER (PARTITION BY node_id) AS last
    FROM (
        SELECT * FROM status_changes
        WHERE revision > $1 AND revision <= $2
        ORDER BY revision
        LIMIT $3
    ) slice
) logged
JOIN nodes named ON named.id = logged.node_id
LEFT JOIN nodes current
    ON current.id = logged.node_id AND logged.revision = logged.last
ORDER BY logged.revision
"""  # noqa: S608  # nothing in it comes from outside
_ENUM_COLUMNS = [
    (place, column.type.enum_class)
    for place, column in enumerate([*SELECT_CHANGES.selected_columns, *_NODE_COLUMNS.values()])
    if isinstance(column.type, Enum) and column.type.enum_class
]
_MAX_REVISION = 2**63 - 1

NodeRow: TypeAlias = Any
"""A named tuple with the attributes of Node."""


def _make_row_type(attributes: Iterable[str]) -> Callable[..., NodeRow]:
    return namedtuple("NodeRow", attributes)  # noqa: PYI024  # the table defines the attributes


_make_node_row = _make_row_type(_NODE_COLUMNS)


async def list_changes_after(
    connection: asyncpg.Connection, revision: int, *, upto: int | None = None, limit: int = 1000
) -> tuple[list[LoggedChange], dict[UUID, NodeRow]]:
    """Return the changes after `revision`, in order, and the nodes that they are about.

    The nodes are rows with the attributes of Node, by their ids; those removed by now are included.
    """
    upto = _MAX_REVISION if upto is None else upto
    records = await connection.fetch(_LIST_AFTER, revision, upto, limit)
    return await take_turns(_parse_records(records))


def _parse_records(
    records: Sequence[asyncpg.Record],
) -> Steps[tuple[list[LoggedChange], dict[UUID, NodeRow]]]:
    changes, nodes = [], {}
    for record in records:
        values = list(record)
        for place, enum in _ENUM_COLUMNS:  # the driver returns them as text
            if values[place] is not None:
                values[place] = enum(values[place])
        changes.append(LoggedChange(*values[: len(_CHANGE_COLUMNS)]))
        node = _make_node_row(*values[len(_CHANGE_COLUMNS) :])
        if node.id is not None:
            nodes[node.id] = node
        yield
    return changes, nodes


async def find_next_revision(connection: asyncpg.Connection, revision: int) -> int:
    """Return the revision of the first change after `revision`, without reading the change."""
    found: int = await connection.fetchval(
        "SELECT coalesce(min(revision), $1) FROM status_changes WHERE revision > $1", revision
    )
    return found


async def match_changes(
    database: Database,
    changes: Sequence[LoggedChange],
    nodes: Mapping[UUID, NodeRow],
    node_filter: NodeFilter,
) -> set[int]:
    """Return the revisions of the changes that match the filter, by the rows of their nodes.

    A removed node's changes can match too. Only `get_database_part` of the filter needs the
    database; it is evaluated on the nodes as they are now.

    Raises: Unavailable: the database did not answer.
    """
    matching = await take_turns(_match_in_memory(changes, nodes, node_filter))
    part = node_filter.get_database_part()
    if part is not None and matching:
        ids = list({change.node for change in matching})
        is_changed = NODE.id == any_(literal(ids, ARRAY(Uuid)))
        async with database.read() as session:
            found = set(
                await session.scalars(select(NODE.id).where(is_changed, part.to_condition()))
            )
        matching = [change for change in matching if change.node in found]
    return {change.revision for change in matching}


def _match_in_memory(
    changes: Sequence[LoggedChange], nodes: Mapping[UUID, NodeRow], node_filter: NodeFilter
) -> Steps[list[LoggedChange]]:
    matches = node_filter.to_predicate()
    matching: list[LoggedChange] = []
    for change in changes:
        if (yield from matches(nodes[change.node], change.status)):
            matching.append(change)
        yield
    return matching


_TRIM = text("""
DELETE FROM status_changes
WHERE revision IN (
    SELECT revision FROM status_changes
    WHERE revision <= (
        SELECT revision FROM status_changes ORDER BY revision DESC OFFSET :keep_rows LIMIT 1
    ) OR changed_at < registry_now() - make_interval(secs => :keep_seconds)
    ORDER BY revision
    LIMIT :batch
)
""")


async def trim_log(
    session: AsyncSession, *, keep_rows: int, keep_seconds: float, batch: int
) -> int:
    """Delete the oldest changes, beyond the count or the age in seconds; return how many.

    changed_at never decreases, so no gap arises. Rows are counted instead of revisions, because a
    restored backup may have left a gap in the revisions.
    """
    parameters = {"keep_rows": keep_rows, "keep_seconds": keep_seconds, "batch": batch}
    result = await session.execute(_TRIM, parameters)
    dropped: int = result.rowcount  # type: ignore[attr-defined]  # DELETE returns a cursor result
    return dropped
