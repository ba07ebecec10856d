"""The history of nodes: pages of heartbeats and changes, metrics, availability."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import BadInput
from db.core.pagination import MAX_PAGE_SIZE
from db.core.tables import METRICS_HISTORY, Heartbeat, Node, StatusChange
from db.registry import history, nodes
from db.registry.node_filter import EVERY_NODE, NodeFilter
from db.registry.status_changes import LoggedChange
from db.retention import partitions
from tests.support.fleet import OPERATOR, beat, clear, fetch_rows, limit_examples, register

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
FLEET = [uuid4() for _ in range(3)]
MOMENTS = st.integers(0, 20).map(lambda n: BEGIN + timedelta(hours=9 * n, microseconds=n % 3))
CHANGES = st.lists(
    st.tuples(MOMENTS, st.sampled_from(FLEET), st.sampled_from(NodeStatus)), max_size=12
).map(lambda changes: sorted(changes, key=lambda change: change[0]))
Change = tuple[datetime, UUID, NodeStatus]


async def build_fleet(session: AsyncSession) -> None:
    await clear(session)
    await session.execute(
        insert(Node),
        [
            {
                "id": node,
                "node_id": f"node-{n}",
                "node_name": "node",
                "node_role": "backup",
                "node_type": "worker",
                "status": "offline",
                "status_reason": "seeded",
            }
            for n, node in enumerate(FLEET)
        ],
    )


async def build_changes(session: AsyncSession, changes: Sequence[Change]) -> None:
    if changes:
        await session.execute(
            insert(StatusChange),
            [
                {
                    "revision": revision,
                    "node_id": node,
                    "status": status,
                    "reason": StatusReason.HEARTBEAT,
                    "actor": "test",
                    "changed_at": changed_at,
                }
                for revision, (changed_at, node, status) in enumerate(changes, start=1)
            ],
        )


def compute_availability(
    changes: Sequence[Change], node: UUID, since: datetime, until: datetime
) -> Fraction:
    """Return the exact availability, change by change."""
    node_changes = [(at, status) for at, changed_node, status in changes if changed_node == node]
    ends = [at for at, _ in node_changes[1:]] + [datetime.max.replace(tzinfo=UTC)]
    up = sum(
        (
            max(min(end, until) - max(at, since), timedelta(0))
            for (at, status), end in zip(node_changes, ends, strict=False)
            if status in {NodeStatus.ONLINE, NodeStatus.DEGRADED}
        ),
        timedelta(0),
    )
    step = timedelta(microseconds=1)
    return Fraction(up // step, (until - since) // step)


@given(CHANGES, st.lists(MOMENTS, min_size=2, max_size=4, unique=True).map(sorted))
@limit_examples(60)
async def test_availability_is_the_share_of_time_that_a_node_was_up(
    database: Database, changes: list[Change], moments: list[datetime]
) -> None:
    async with database.write() as session:
        await build_fleet(session)
        await build_changes(session, changes)
        for since, until in pairwise(moments):
            availability = await history.compute_availability(
                session, FLEET, since=since, until=until
            )
            assert list(availability) == FLEET
            for node in FLEET:
                assert availability[node] == float(
                    compute_availability(changes, node, since, until)
                )


async def test_availability_is_exact_to_the_microsecond(database: Database) -> None:
    step = timedelta(microseconds=1)
    async with database.write() as session:
        await build_fleet(session)
        await build_changes(
            session,
            [
                (BEGIN, FLEET[0], NodeStatus.ONLINE),
                (BEGIN + 3 * step, FLEET[0], NodeStatus.OFFLINE),
                (BEGIN + 4 * step, FLEET[0], NodeStatus.DEGRADED),
                (BEGIN + 5 * step, FLEET[0], NodeStatus.MAINTENANCE),
            ],
        )
        for since, until, share in (
            (0, 3, 1),
            (0, 4, 0.75),
            (3, 4, 0),
            (2, 6, 0.5),
            (-4, 4, 0.375),
        ):
            availability = await history.compute_availability(
                session, FLEET[:1], since=BEGIN + since * step, until=BEGIN + until * step
            )
            assert availability == {FLEET[0]: share}


async def test_future_does_not_count_for_availability(database: Database) -> None:
    node, _ = await register(database, "node-3")
    assert node.registered_at <= node.status_since
    async with database.read() as session:
        for until in (None, datetime(9999, 1, 1, tzinfo=UTC)):
            availability = await history.compute_availability(
                session, [node.id], since=node.status_since, until=until
            )
            assert availability == {node.id: 1.0}


@pytest.mark.parametrize(
    ("since", "until"),
    [(1, 1), (2, 1), (24 * 365 * 1000, None), (24 * 365 * 1000, 24 * 365 * 2000)],
)
async def test_availability_of_an_empty_span_is_rejected(
    database: Database, since: int, until: int | None
) -> None:
    with pytest.raises(BadInput, match="since"):
        async with database.read() as session:
            await history.compute_availability(
                session,
                FLEET,
                since=BEGIN + timedelta(hours=since),
                until=None if until is None else BEGIN + timedelta(hours=until),
            )


async def test_removed_node_is_not_available(database: Database) -> None:
    node, _ = await register(database, "node-3")
    async with database.write() as session:
        await nodes.deregister(session, "node-3", note=None, caller=OPERATOR)
    [(removed_at,)] = await fetch_rows(database, "SELECT max(changed_at) FROM status_changes")
    async with database.read() as session:
        assert await history.compute_availability(
            session, [node.id], since=removed_at, until=None
        ) == {node.id: 0.0}


BEATS = st.lists(st.tuples(MOMENTS, st.sampled_from(FLEET)), max_size=15)


@given(
    BEATS,
    st.lists(st.sampled_from(FLEET), max_size=3, unique=True),
    st.integers(1, 4),
    st.fixed_dictionaries({"since": st.none() | MOMENTS, "until": st.none() | MOMENTS}),
)
@limit_examples(60)
async def test_heartbeats_of_each_node_are_paged_newest_first(
    database: Database,
    beats: list[tuple[datetime, UUID]],
    requested: list[UUID],
    first: int,
    bounds: dict[str, datetime | None],
) -> None:
    since, until = bounds["since"], bounds["until"]
    async with database.write() as session:
        await build_fleet(session)
        logged = []
        for timestamp, node in beats:
            values = {"timestamp": timestamp, "node_id": node, "status": "online"}
            row = await session.execute(insert(Heartbeat).values(values).returning(Heartbeat.id))  # type: ignore[call-overload]  # SQLModel types it as the value
            logged.append((timestamp, row.scalar_one(), node))
        pages = await history.list_heartbeats(session, requested, first=first, after=None, **bounds)
        assert list(pages) == requested
        for node in requested:
            expected = sorted(
                (
                    (timestamp, heartbeat_id)
                    for timestamp, heartbeat_id, heartbeat_node in logged
                    if heartbeat_node == node
                    and (since is None or timestamp >= since)
                    and (until is None or timestamp < until)
                ),
                reverse=True,
            )
            page, keys = pages[node], [get_heartbeat_key(row) for row in pages[node].rows]
            while page.has_next:
                assert len(page.rows) == first
                cursor = history.HEARTBEAT_ORDER.encode_cursor(*keys[-1])
                next_pages = await history.list_heartbeats(
                    session, [node], first=first, after=cursor, **bounds
                )
                page = next_pages[node]
                keys += [get_heartbeat_key(row) for row in page.rows]
            assert keys == expected


def get_heartbeat_key(heartbeat: Heartbeat) -> tuple[datetime, int]:
    return heartbeat.timestamp, heartbeat.id


@given(CHANGES, st.lists(st.sampled_from(FLEET), max_size=3, unique=True), st.integers(1, 4))
@limit_examples(40)
async def test_changes_of_each_node_are_paged_newest_first(
    database: Database, changes: list[Change], requested: list[UUID], first: int
) -> None:
    async with database.write() as session:
        await build_fleet(session)
        await build_changes(session, changes)
        pages = await history.list_status_changes_by_node(
            session, requested, first=first, after=None
        )
        assert list(pages) == requested
        for node in requested:
            expected = [
                (revision, status)
                for revision, (_, changed_node, status) in enumerate(changes, start=1)
                if changed_node == node
            ][::-1]
            page, listed = pages[node], list(pages[node].rows)
            while page.has_next:
                cursor = history.STATUS_CHANGE_ORDER.encode_cursor(listed[-1].revision)
                next_pages = await history.list_status_changes_by_node(
                    session, [node], first=first, after=cursor
                )
                page = next_pages[node]
                listed += page.rows
            assert [(change.revision, change.status) for change in listed] == expected
            assert all(change.node_id == f"node-{FLEET.index(node)}" for change in listed)


@given(CHANGES, st.integers(1, 4), st.none() | st.sampled_from(NodeStatus))
@limit_examples(40)
async def test_changes_of_all_nodes_are_paged_newest_first(
    database: Database, changes: list[Change], first: int, status: NodeStatus | None
) -> None:
    node_filter = EVERY_NODE if status is None else NodeFilter(statuses=(status,))
    async with database.write() as session:
        await build_fleet(session)
        await build_changes(session, changes)
        listed: list[LoggedChange] = []
        cursor = None
        while True:
            page = await history.list_status_changes(
                session, node_filter, first=first, after=cursor
            )
            listed += page.rows
            if not page.has_next:
                break
            cursor = history.STATUS_CHANGE_ORDER.encode_cursor(listed[-1].revision)
    assert [
        (change.revision, change.changed_at, change.node, change.status) for change in listed
    ] == [
        (revision, *change)
        for revision, change in enumerate(changes, start=1)
        if status in (None, change[2])
    ][::-1]


@pytest.mark.parametrize("first", [-1, MAX_PAGE_SIZE + 1])
async def test_page_of_an_invalid_size_is_rejected(database: Database, first: int) -> None:
    size: dict[str, Any] = {"first": first, "after": None}
    async with database.read() as session:
        with pytest.raises(BadInput, match="first"):
            await history.list_heartbeats(session, FLEET, **size, since=None, until=None)
        with pytest.raises(BadInput, match="first"):
            await history.list_status_changes(session, EVERY_NODE, **size)
        with pytest.raises(BadInput, match="first"):
            await history.list_status_changes_by_node(session, FLEET, **size)


async def test_cursor_of_another_history_is_rejected(database: Database) -> None:
    async with database.read() as session:
        with pytest.raises(BadInput, match="after"):
            await history.list_status_changes(
                session, EVERY_NODE, first=1, after=history.HEARTBEAT_ORDER.encode_cursor(BEGIN, 1)
            )


@given(
    st.sets(st.tuples(MOMENTS.map(lambda m: m.replace(microsecond=0)), st.sampled_from(FLEET))),
    st.lists(st.sampled_from(FLEET), max_size=3, unique=True),
    st.integers(1, 4),
    st.fixed_dictionaries({"since": st.none() | MOMENTS, "until": st.none() | MOMENTS}),
)
@limit_examples(40)
async def test_hours_of_each_node_are_paged_newest_first(
    database: Database,
    hours: set[tuple[datetime, UUID]],
    requested: list[UUID],
    first: int,
    bounds: dict[str, datetime | None],
) -> None:
    since, until = bounds["since"], bounds["until"]
    async with database.write() as session:
        await build_fleet(session)
        await session.execute(delete(METRICS_HISTORY))
        for hour, node in hours:
            await partitions.make_month_partition(session, hour)
            row = {"hour": hour, "node_id": node, "heartbeats": 1}
            await session.execute(insert(METRICS_HISTORY), row)
        pages = await history.list_hourly_metrics(
            session, requested, first=first, after=None, **bounds
        )
        assert list(pages) == requested
        for node in requested:
            page, listed_hours = pages[node], [row.hour for row in pages[node].rows]
            while page.has_next:
                assert len(page.rows) == first
                cursor = history.METRICS_ORDER.encode_cursor(listed_hours[-1])
                next_pages = await history.list_hourly_metrics(
                    session, [node], first=first, after=cursor, **bounds
                )
                page = next_pages[node]
                listed_hours += [row.hour for row in page.rows]
            assert listed_hours == sorted(
                (
                    hour
                    for hour, measured_node in hours
                    if measured_node == node
                    and (since is None or hour >= since)
                    and (until is None or hour < until)
                ),
                reverse=True,
            )


async def test_latest_metrics_are_those_of_the_last_heartbeat(database: Database) -> None:
    reporting, _ = await register(database, "node-3")
    silent, _ = await register(database, "node-4")
    reporting_nothing, _ = await register(database, "node-5")
    await beat(database, "node-3", 1, metrics={"cpu_percent": 1})
    await beat(database, "node-3", 3, metrics={"cpu_percent": 3, "extra": {"a": [None]}})
    await beat(database, "node-3", 2, metrics={"cpu_percent": 2})
    await beat(database, "node-5")
    async with database.read() as session:
        assert await history.find_latest_metrics(
            session, [reporting.id, silent.id, reporting_nothing.id]
        ) == {
            reporting.id: {"cpu_percent": 3, "extra": {"a": [None]}},
            reporting_nothing.id: {},
        }
        assert await history.find_latest_metrics(session, []) == {}
