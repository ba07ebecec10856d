"""The history of nodes: their heartbeats, metrics, status changes and availability over time.

Each function reads for many nodes at once, so that a list costs as few statements as one node.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, func, select, text, true
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlmodel import col

from db.core.errors import BadInput
from db.core.pagination import Keyset, Page, make_page
from db.core.tables import HEARTBEAT, METRICS_HISTORY, NODE, STATUS_CHANGE, Heartbeat, Node
from db.core.turns import ROWS_PER_FETCH, collect, read_rows, take_turns
from db.registry import status_changes
from db.registry.node_filter import NodeFilter
from db.registry.status_changes import LoggedChange

EntryT = TypeVar("EntryT")

HEARTBEAT_ORDER = Keyset(
    "heartbeats", (HEARTBEAT.timestamp, HEARTBEAT.id), (datetime, int), descending=True
)
METRICS_ORDER = Keyset("metrics", (METRICS_HISTORY.c.hour,), (datetime,), descending=True)
STATUS_CHANGE_ORDER = Keyset("changes", (STATUS_CHANGE.revision,), (int,), descending=True)


async def list_heartbeats(
    session: AsyncSession,
    nodes: Sequence[UUID],
    *,
    first: int,
    after: str | None,
    since: datetime | None,
    until: datetime | None,
) -> dict[UUID, Page[Heartbeat]]:
    """Return a page of each node's heartbeats from `since` on and before `until`, newest first.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of HEARTBEAT_ORDER.
    """
    statement = select(Heartbeat).where(HEARTBEAT.node_id == NODE.id)
    if since is not None:
        statement = statement.where(HEARTBEAT.timestamp >= since)
    if until is not None:
        statement = statement.where(HEARTBEAT.timestamp < until)
    page = HEARTBEAT_ORDER.select_page(statement, first=first, after=after).lateral()
    rows = await read_rows(
        session,
        select(aliased(Heartbeat, page))
        .select_from(Node)
        .join(page, true())
        .where(NODE.id.in_(nodes))
        .order_by(page.c.timestamp.desc(), page.c.id.desc()),
    )
    return _make_pages(nodes, ((row.node_id, row) for row in rows), first)


# A node's heartbeats are written under its lock, so their ids are in the order of their commits.
_LIST_HEARTBEATS_AFTER = text("""
SELECT h.id, h.timestamp, h.node_id, h.status, h.metrics
FROM unnest(CAST(:nodes AS uuid[]), CAST(:last_ids AS bigint[])) AS w (node, last_id), LATERAL (
    SELECT * FROM heartbeat_log l
    WHERE l.node_id = w.node AND l.id > w.last_id AND l.timestamp > registry_now() - interval '1h'
    ORDER BY l.timestamp DESC, l.id DESC
    LIMIT 100
) h
ORDER BY h.id
""").columns(
    HEARTBEAT.id, HEARTBEAT.timestamp, HEARTBEAT.node_id, HEARTBEAT.status, HEARTBEAT.metrics
)


async def list_heartbeats_after(
    session: AsyncSession, last_ids: Mapping[UUID, int]
) -> dict[UUID, list[Heartbeat]]:
    """Return each node's heartbeats after its last id, in order: the newest 100 of the last hour.

    Nodes without any are left out.
    """
    rows = await session.scalars(
        select(Heartbeat).from_statement(_LIST_HEARTBEATS_AFTER),
        {"nodes": list(last_ids), "last_ids": list(last_ids.values())},
    )
    by_node: dict[UUID, list[Heartbeat]] = {}
    for row in await take_turns(collect(rows.yield_per(ROWS_PER_FETCH))):
        by_node.setdefault(row.node_id, []).append(row)
    return by_node


async def find_newest_heartbeat_ids(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, int]:
    """Return the id of each node's last heartbeat. Nodes without any are left out."""
    rows = await session.execute(
        select(NODE.id, NODE.last_heartbeat_id).where(
            NODE.id.in_(nodes), NODE.last_heartbeat_id.is_not(None)
        )
    )
    return {row.id: row.last_heartbeat_id for row in rows}


async def find_latest_metrics(session: AsyncSession, nodes: Sequence[UUID]) -> dict[UUID, Any]:
    """Return the metrics of each node's last heartbeat.

    Nodes whose last heartbeat is not in the log are left out.
    """
    rows = await session.execute(
        select(NODE.id, HEARTBEAT.metrics)
        .join(
            Heartbeat,
            (HEARTBEAT.id == NODE.last_heartbeat_id) & (HEARTBEAT.timestamp == NODE.last_heartbeat),
        )
        .where(NODE.id.in_(nodes))
    )
    return {row.id: row.metrics for row in await take_turns(collect(rows))}


async def list_hourly_metrics(
    session: AsyncSession,
    nodes: Sequence[UUID],
    *,
    first: int,
    after: str | None,
    since: datetime | None,
    until: datetime | None,
) -> dict[UUID, Page[Row[Any]]]:
    """Return a page of each node's roll-ups, newest first.

    They are those of the hours that begin from `since` on and before `until`, as rows with the
    columns of metrics_history. Raises: BadInput: `first` is out of bounds, or `after` is not a
    cursor of METRICS_ORDER.
    """
    hour = METRICS_HISTORY.c.hour
    statement = select(METRICS_HISTORY).where(METRICS_HISTORY.c.node_id == NODE.id)
    if since is not None:
        statement = statement.where(hour >= since)
    if until is not None:
        statement = statement.where(hour < until)
    page = METRICS_ORDER.select_page(statement, first=first, after=after).lateral()
    rows = await session.execute(
        select(page)
        .select_from(Node)
        .join(page, true())
        .where(NODE.id.in_(nodes))
        .order_by(page.c.hour.desc())
    )
    found = await take_turns(collect(rows))
    return _make_pages(nodes, ((row.node_id, row) for row in found), first)


async def list_status_changes(
    session: AsyncSession, node_filter: NodeFilter, *, first: int, after: str | None
) -> Page[LoggedChange]:
    """Return a page of the status changes that match the filter, newest first.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of STATUS_CHANGE_ORDER.
    """
    statement = STATUS_CHANGE_ORDER.select_page(
        status_changes.SELECT_CHANGES.where(node_filter.to_condition(status=STATUS_CHANGE.status)),
        first=first,
        after=after,
    )
    return make_page([LoggedChange(*row) for row in await session.execute(statement)], first)


async def list_status_changes_by_node(
    session: AsyncSession, nodes: Sequence[UUID], *, first: int, after: str | None
) -> dict[UUID, Page[LoggedChange]]:
    """Return a page of each node's status changes, newest first.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of STATUS_CHANGE_ORDER.
    """
    subject = aliased(Node)
    page = STATUS_CHANGE_ORDER.select_page(
        status_changes.SELECT_CHANGES.where(STATUS_CHANGE.node_id == subject.id),
        first=first,
        after=after,
    ).lateral()
    rows = await session.execute(
        select(page)
        .select_from(subject)
        .join(page, true())
        .where(col(subject.id).in_(nodes))
        .order_by(page.c.revision.desc())
    )
    logged = (LoggedChange(*row) for row in rows)
    return _make_pages(nodes, ((change.node, change) for change in logged), first)


# The last change before the period gives the status at its start. A node was not available before
# it was registered and after it was removed. What a trimmed log no longer holds is taken from the
# first change that it holds or, without one, from the node.
_AVAILABILITY = text("""
WITH held AS (
    SELECT node_id, previous_status, status, changed_at, revision
    FROM status_changes
    WHERE node_id = ANY(CAST(:nodes AS uuid[]))
), trimmed AS (
    SELECT n.id AS node_id, coalesce(first.previous_status, n.status) AS status,
           n.registered_at AS changed_at, CAST(0 AS bigint) AS revision
    FROM nodes n LEFT JOIN LATERAL (
        SELECT * FROM held h WHERE h.node_id = n.id ORDER BY h.revision LIMIT 1
    ) first ON true
    WHERE n.id = ANY(CAST(:nodes AS uuid[]))
      AND (first.revision IS NULL OR first.previous_status IS NOT NULL)
), change AS (
    SELECT node_id, status, changed_at,
           lead(changed_at, 1, 'infinity') OVER (PARTITION BY node_id ORDER BY revision) AS ended_at
    FROM (
        SELECT node_id, status, changed_at, revision FROM held
        UNION ALL SELECT node_id, status, changed_at, revision FROM trimmed
    ) known
    WHERE changed_at < :until
)
SELECT node_id,
       extract(epoch FROM sum(least(ended_at, :until) - greatest(changed_at, :since)))
       / extract(epoch FROM CAST(:until AS timestamptz) - CAST(:since AS timestamptz))
FROM change
WHERE status IN ('online', 'degraded') AND ended_at > :since
GROUP BY node_id
""")


async def compute_availability(
    session: AsyncSession, nodes: Sequence[UUID], *, since: datetime, until: datetime | None
) -> dict[UUID, float]:
    """Return the fraction of the time, 0 to 1, in which each node was ONLINE or DEGRADED.

    The time is that from `since` to `until`, or to now, which also bounds it.

    Raises: BadInput: `since` is not before both `until` and now.
    """
    now: datetime = (await session.execute(select(func.registry_now()))).scalar_one()
    end = min(until or now, now)
    if since >= end:
        raise BadInput("since", "must lie before until, and in the past")
    rows = await session.execute(
        _AVAILABILITY, {"nodes": list(nodes), "since": since, "until": end}
    )
    return dict.fromkeys(nodes, 0.0) | {node: float(part) for node, part in rows}


def _make_pages(
    nodes: Sequence[UUID], entries: Iterable[tuple[UUID, EntryT]], first: int
) -> dict[UUID, Page[EntryT]]:
    """Return a page of the entries of each node, in order; it may be empty."""
    by_node: dict[UUID, list[EntryT]] = {node: [] for node in nodes}
    for node, entry in entries:
        by_node[node].append(entry)
    return {node: make_page(page, first) for node, page in by_node.items()}
