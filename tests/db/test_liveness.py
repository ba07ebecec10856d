"""Nodes become overdue, OFFLINE and ONLINE by the database's clock alone, exactly at the limits."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.tables import Node
from db.registry import nodes, registration, sweep
from db.registry.liveness_rules import LivenessRules
from tests.support.fleet import (
    AGENT,
    EXPIRED,
    LATER,
    OPERATOR,
    OVERDUE,
    PROCESS,
    RULES,
    age,
    beat,
    expire_maintenance,
    fetch_rows,
    get_node,
    list_changes,
    make_registration,
    mark_registry_running,
    register,
    run_sweep,
)

MICROSECOND = 1e-6
INTERVAL = 8.0
OVERDUE_AFTER = INTERVAL + RULES.grace
EXPIRED_AFTER = 3 * INTERVAL + RULES.grace


async def sweep_after(database: Database, silence: float) -> Node:
    """Return the node after a sweep at the exact instant at which it was silent for so long."""
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE nodes SET heartbeat_interval_seconds = :interval,"
                " heard_at = now() - make_interval(secs => :silence) WHERE node_id = 'node-3'"
            ),
            {"interval": INTERVAL, "silence": silence},
        )
        await mark_registry_running(session)
        await sweep.sweep(session, PROCESS, RULES)
    return await get_node(database, "node-3")


@pytest.mark.parametrize("before", [NodeStatus.ONLINE, NodeStatus.DEGRADED])
async def test_silent_node_becomes_degraded_and_offline_exactly_at_the_limits(
    database: Database, before: NodeStatus
) -> None:
    await register(database, "node-3")
    if before is NodeStatus.DEGRADED:
        await beat(database, "node-3", degraded=True)
    for silence, status in (
        (0, before),
        (OVERDUE_AFTER - MICROSECOND, before),
        (OVERDUE_AFTER, NodeStatus.DEGRADED),
        (EXPIRED_AFTER - MICROSECOND, NodeStatus.DEGRADED),
        (EXPIRED_AFTER, NodeStatus.OFFLINE),
        (1e6, NodeStatus.OFFLINE),
    ):
        node = await sweep_after(database, silence)
        assert node.status is status
    assert node.status_reason is StatusReason.MISSED_HEARTBEATS


async def test_node_silent_for_its_lease_becomes_offline_directly(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await sweep_after(database, EXPIRED_AFTER)
    assert [change.status for change in await list_changes(database, node.id)] == [
        NodeStatus.ONLINE,
        NodeStatus.OFFLINE,
    ]


async def test_lease_of_a_node_depends_on_its_own_interval(
    database: Database,
) -> None:
    await register(database, "node-3")
    async with database.write() as session:
        slow = LivenessRules(min_interval=100)
        await registration.register(session, make_registration("node-4"), rules=slow, caller=AGENT)
    await age(database, EXPIRED)
    assert await run_sweep(database) == 1
    assert (await get_node(database, "node-3")).status is NodeStatus.OFFLINE
    assert (await get_node(database, "node-4")).status is NodeStatus.ONLINE


async def test_sweep_without_due_nodes_changes_nothing(database: Database) -> None:
    await register(database, "node-3")
    before = await get_node(database, "node-3")
    assert await run_sweep(database) == 0
    assert await get_node(database, "node-3") == before
    assert len(await list_changes(database)) == 3


async def test_self_reported_degraded_node_stays_degraded_until_its_lease_expires(
    database: Database,
) -> None:
    node, _ = await register(database, "node-3")
    await beat(database, "node-3", degraded=True)
    await age(database, OVERDUE)
    assert await run_sweep(database) == 0
    assert (await get_node(database, "node-3")).status_reason is StatusReason.SELF_REPORTED
    await age(database, EXPIRED - OVERDUE)
    assert await run_sweep(database) == 1
    last = (await list_changes(database, node.id))[-1]
    assert (last.previous_status, last.status) == (NodeStatus.DEGRADED, NodeStatus.OFFLINE)
    assert (last.reason, last.actor) == (StatusReason.MISSED_HEARTBEATS, "system/registry")


async def start_maintenance(
    database: Database, until: datetime | None, note: str | None = None
) -> Node:
    async with database.write() as session:
        return await nodes.start_maintenance(
            session, "node-3", note=note, until=until, caller=OPERATOR
        )


async def end_maintenance(database: Database) -> Node:
    async with database.write() as session:
        return await nodes.end_maintenance(
            session, "node-3", rules=RULES, note=None, caller=OPERATOR
        )


async def test_start_of_maintenance_is_logged_with_note_and_actor(database: Database) -> None:
    await register(database, "node-3")
    node = await start_maintenance(database, None, "new disks")
    assert (node.status, node.maintenance_until) == (NodeStatus.MAINTENANCE, None)
    last = (await list_changes(database, node.id))[-1]
    assert (last.reason, last.note, last.actor) == (
        StatusReason.MAINTENANCE_STARTED,
        "new disks",
        "op",
    )


async def test_silent_node_in_maintenance_stays_in_maintenance(database: Database) -> None:
    await register(database, "node-3")
    await start_maintenance(database, datetime.now(UTC) + timedelta(hours=1))
    await age(database, EXPIRED)
    assert await run_sweep(database) == 0
    assert (await get_node(database, "node-3")).status is NodeStatus.MAINTENANCE


@pytest.mark.parametrize("ended_by", ["operator", "until"])
@pytest.mark.parametrize(
    ("silence", "reported", "status"),
    [
        (0, "online", NodeStatus.ONLINE),
        (0, "degraded", NodeStatus.DEGRADED),
        (OVERDUE, "online", NodeStatus.DEGRADED),
        (EXPIRED, "degraded", NodeStatus.OFFLINE),
    ],
)
async def test_maintenance_ends_in_the_status_of_the_heartbeats(
    database: Database, ended_by: str, silence: float, reported: str, status: NodeStatus
) -> None:
    await register(database, "node-3")
    await start_maintenance(database, LATER)
    await beat(database, "node-3", degraded=reported == "degraded")
    await age(database, silence)
    if ended_by == "until":
        async with database.write() as session:
            await expire_maintenance(session, "node-3")
        assert await run_sweep(database) == 1
    else:
        await end_maintenance(database)
    node = await get_node(database, "node-3")
    assert (node.status, node.status_reason) == (status, StatusReason.MAINTENANCE_ENDED)
    assert node.maintenance_until is None
    assert (await list_changes(database, node.id))[-1].actor == (
        "system/registry" if ended_by == "until" else "op"
    )


async def test_node_without_heartbeats_leaves_maintenance_offline(database: Database) -> None:
    async with database.write() as session:
        await nodes.start_maintenance(
            session, "node-2-macbook-m4max", note=None, until=LATER, caller=OPERATOR
        )
        await expire_maintenance(session, "node-2-macbook-m4max")
    assert await run_sweep(database) == 1
    node = await get_node(database, "node-2-macbook-m4max")
    assert (node.status, node.status_reason) == (
        NodeStatus.OFFLINE,
        StatusReason.MAINTENANCE_ENDED,
    )


async def test_ending_maintenance_that_did_not_start_changes_nothing(database: Database) -> None:
    await register(database, "node-3")
    before = await get_node(database, "node-3")
    await end_maintenance(database)
    assert await get_node(database, "node-3") == before
    assert len(await list_changes(database)) == 3


async def test_restarted_maintenance_has_the_new_end_and_the_old_start(
    database: Database,
) -> None:
    await register(database, "node-3")
    first = await start_maintenance(database, LATER)
    second = await start_maintenance(database, None, "longer")
    assert (second.status, second.maintenance_until) == (NodeStatus.MAINTENANCE, None)
    assert second.status_since == first.status_since
    assert await run_sweep(database) == 0


async def write_fleet(database: Database, size: int) -> None:
    """Write a fleet by one statement, as registrations would leave it."""
    async with database.write() as session:
        await session.execute(
            text("""
            WITH made AS (
                INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason,
                                   boot_id, boot_since, heard_at, heartbeat_interval_seconds)
                SELECT 'fleet-' || n, 'fleet', 'production', 'worker', 'online', 'registered',
                       'boot-1', now(), now(), 10
                FROM generate_series(1, :size) AS n
                RETURNING id
            ), counted AS (UPDATE registry_state SET revision = revision + :size)
            INSERT INTO status_changes (revision, node_id, status, reason, actor, changed_at)
            SELECT row_number() OVER () + (SELECT revision FROM registry_state), id, 'online',
                   'registered', 'agent', now()
            FROM made"""),
            {"size": size},
        )


async def test_concurrent_sweeps_change_each_node_once(database: Database) -> None:
    await write_fleet(database, 300)
    for silence in (OVERDUE, EXPIRED - OVERDUE):
        await age(database, silence)
        counts = await asyncio.gather(*(run_sweep(database) for _ in range(4)))
        assert sum(counts) == 300
    assert await fetch_rows(
        database,
        "SELECT reason, count(*), count(DISTINCT node_id) FROM status_changes GROUP BY reason"
        " ORDER BY reason",
    ) == [("missed_heartbeats", 600, 300), ("registered", 300, 300), ("seeded", 2, 2)]


async def test_sweep_changes_a_limited_number_and_the_next_one_the_rest(
    database: Database,
) -> None:
    await write_fleet(database, sweep.SWEEP_LIMIT + 5)
    await age(database, EXPIRED)
    assert [await run_sweep(database) for _ in range(3)] == [sweep.SWEEP_LIMIT, 5, 0]


async def test_sweep_skips_locked_nodes(database: Database) -> None:
    await register(database, "node-3")
    await register(database, "node-4")
    await age(database, EXPIRED)
    async with database.write() as other:
        await other.execute(text("SELECT FROM nodes WHERE node_id = 'node-3' FOR UPDATE"))
        async with asyncio.timeout(5):
            assert await run_sweep(database) == 1
    assert await run_sweep(database) == 1


async def test_node_with_a_heartbeat_during_the_sweep_is_not_marked(
    database: Database,
) -> None:
    await register(database, "node-3")
    await age(database, EXPIRED)
    async with database.write() as session:
        await session.execute(text("SELECT now()"))
        await beat(database, "node-3")
        await mark_registry_running(session)
        assert (await sweep.sweep(session, PROCESS, RULES)).changed_nodes == 0


async def test_sweep_never_changes_seeded_or_removed_nodes(database: Database) -> None:
    for node_id in ("node-3", "node-4"):
        await register(database, node_id)
        async with database.write() as session:
            await nodes.deregister(session, node_id, note=None, caller=OPERATOR)
    async with database.write() as session:
        # Like a row that was changed by hand.
        await session.execute(text("UPDATE nodes SET status = 'online' WHERE node_id = 'node-4'"))
    before = await list_changes(database)
    await age(database, EXPIRED)
    assert await run_sweep(database) == 0
    assert await list_changes(database) == before


async def test_only_nodes_that_should_send_heartbeats_count_as_live(
    database: Database,
) -> None:
    for node_id in ("node-3", "node-4", "node-5", "node-6"):
        await register(database, node_id)
    await beat(database, "node-4", degraded=True)
    await start_maintenance(database, None)
    async with database.write() as session:
        await nodes.deregister(session, "node-5", note=None, caller=OPERATOR)
    async with database.write() as session:
        assert (await sweep.sweep(session, PROCESS, RULES)).live_nodes == 2
        assert await nodes.count_nodes_by_status(session) == {
            NodeStatus.ONLINE: 1,
            NodeStatus.DEGRADED: 1,
            NodeStatus.OFFLINE: 2,
            NodeStatus.MAINTENANCE: 1,
        }
