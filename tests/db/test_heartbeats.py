"""Batches of heartbeats: the outcome of each, and what is written."""

import asyncio
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import NodeNotFound, StaleBoot, Unavailable
from db.core.tables import Node
from db.registry import heartbeats, nodes, registration, sweep
from db.registry.heartbeats import HeartbeatAck
from tests.support.fleet import (
    AGENT,
    EXPIRED,
    OPERATOR,
    OVERDUE,
    PROCESS,
    RULES,
    age,
    beat,
    fetch_rows,
    get_node,
    limit_examples,
    list_changes,
    make_registration,
    make_report,
    mark_registry_running,
    record,
    register,
    run_sweep,
    wait_for_lock,
)
from tests.support.statements import record_statements

LOGGED = """
SELECT n.node_id, h.status, metrics->>'n' FROM heartbeat_log h JOIN nodes n ON n.id = h.node_id
ORDER BY h.id
"""


async def test_each_report_of_a_batch_has_its_own_outcome_in_order(
    database: Database,
) -> None:
    await register(database, "node-3")
    await register(database, "node-4")
    outcomes = await record(
        database,
        make_report("unknown"),
        make_report("node-4", metrics={"n": 4}),
        make_report("node-3", boot_id="boot-0"),
        make_report("node-1-hetzner-gex44"),
        make_report("node-3", degraded=True, metrics={"n": 3}),
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [NodeNotFound, HeartbeatAck, StaleBoot, NodeNotFound, HeartbeatAck]
    assert isinstance(outcomes[1], HeartbeatAck)
    assert isinstance(outcomes[4], HeartbeatAck)
    assert (outcomes[1].node_id, outcomes[1].status) == ("node-4", NodeStatus.ONLINE)
    assert (outcomes[4].node_id, outcomes[4].status) == ("node-3", NodeStatus.DEGRADED)
    assert sorted(await fetch_rows(database, LOGGED)) == [
        ("node-3", "degraded", "3"),
        ("node-4", "online", "4"),
    ]


async def test_empty_batch_has_no_outcomes(database: Database) -> None:
    assert await record(database) == []


async def test_heartbeat_is_recorded_with_the_node(database: Database) -> None:
    await register(database, "node-3")
    ack = await beat(database, "node-3", 5, metrics={"n": 1})
    node = await get_node(database, "node-3")
    assert node.last_heartbeat == node.heard_at == ack.received_at
    assert (node.last_sequence, node.reported_degraded) == (5, False)
    assert node.heartbeat_interval_seconds == ack.interval_seconds
    [(logged_id, logged_at)] = await fetch_rows(database, "SELECT id, timestamp FROM heartbeat_log")
    assert (node.last_heartbeat_id, node.last_heartbeat) == (logged_id, logged_at)


async def test_heartbeat_without_metrics_is_logged_without_metrics(database: Database) -> None:
    await register(database, "node-3")
    await beat(database, "node-3")
    assert await fetch_rows(database, "SELECT metrics FROM heartbeat_log") == [({},)]


async def test_heartbeat_changes_no_indexed_column(database: Database) -> None:
    await register(database, "node-3", labels=["gpu"], capabilities={"models": ["llama"]})
    before = await get_node(database, "node-3")
    await beat(database, "node-3")
    after = await get_node(database, "node-3")
    assert after.updated_at == before.updated_at
    changed_columns = {
        name for name, value in after.model_dump().items() if value != getattr(before, name)
    }
    [(indexed_columns,)] = await fetch_rows(
        database,
        "SELECT array_agg(DISTINCT attname::text) FROM pg_index i JOIN pg_attribute a"
        " ON a.attrelid = indrelid AND a.attnum = ANY (indkey) WHERE indrelid = 'nodes'::regclass",
    )
    assert changed_columns
    assert not changed_columns & set(indexed_columns)


@pytest.mark.parametrize("sequence", [5, 4, 0])
async def test_heartbeat_with_an_old_sequence_changes_nothing(
    database: Database, sequence: int
) -> None:
    await register(database, "node-3")
    last = await beat(database, "node-3", 5)
    before = await get_node(database, "node-3")
    repeated = await beat(database, "node-3", sequence, degraded=True, metrics={"late": True})
    assert repeated == last
    assert await get_node(database, "node-3") == before
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(1,)]


async def test_sequence_may_be_zero_and_the_largest_integer(database: Database) -> None:
    await register(database, "node-3")
    await beat(database, "node-3", 0)
    await beat(database, "node-3", 2**63 - 1)
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(2,)]


async def test_late_heartbeat_leaves_an_offline_node_offline(
    database: Database,
) -> None:
    await register(database, "node-3")
    await beat(database, "node-3", 5)
    await age(database, EXPIRED, "node-3")
    await run_sweep(database)
    assert (await beat(database, "node-3", 5)).status is NodeStatus.OFFLINE
    assert (await get_node(database, "node-3")).status is NodeStatus.OFFLINE


async def test_heartbeat_of_a_replaced_run_is_stale_and_changes_nothing(database: Database) -> None:
    await register(database, "node-3")
    await age(database, OVERDUE, "node-3")
    await register(database, "node-3", "boot-2")
    before = await get_node(database, "node-3")
    [outcome] = await record(database, make_report("node-3", 99))
    assert isinstance(outcome, StaleBoot)
    assert await get_node(database, "node-3") == before


async def test_node_reports_itself_degraded_and_online_again(database: Database) -> None:
    node, _ = await register(database, "node-3")
    for sequence, degraded in enumerate([True, True, False, False]):
        await beat(database, "node-3", sequence, degraded=degraded)
    assert [
        (change.previous_status, change.status, change.reason, change.actor)
        for change in (await list_changes(database, node.id))[1:]
    ] == [
        (NodeStatus.ONLINE, NodeStatus.DEGRADED, StatusReason.SELF_REPORTED, "agent"),
        (NodeStatus.DEGRADED, NodeStatus.ONLINE, StatusReason.HEARTBEAT, "agent"),
    ]


async def test_self_reported_status_replaces_missed_heartbeats(
    database: Database,
) -> None:
    await register(database, "node-3")
    await age(database, OVERDUE, "node-3")
    await run_sweep(database)
    silent = await get_node(database, "node-3")
    assert silent.status_reason is StatusReason.MISSED_HEARTBEATS
    await beat(database, "node-3", degraded=True)
    node = await get_node(database, "node-3")
    assert (node.status, node.status_reason) == (NodeStatus.DEGRADED, StatusReason.SELF_REPORTED)
    assert node.status_since == silent.status_since


@pytest.mark.parametrize(
    ("silence", "status"), [(OVERDUE, NodeStatus.DEGRADED), (EXPIRED, NodeStatus.OFFLINE)]
)
async def test_heartbeat_brings_a_silent_node_online(
    database: Database, silence: float, status: NodeStatus
) -> None:
    await register(database, "node-3")
    await age(database, silence, "node-3")
    await run_sweep(database)
    assert (await get_node(database, "node-3")).status is status
    assert (await beat(database, "node-3")).status is NodeStatus.ONLINE
    node = await get_node(database, "node-3")
    assert (node.status, node.status_reason) == (NodeStatus.ONLINE, StatusReason.HEARTBEAT)


async def test_heartbeat_during_maintenance_is_recorded_and_keeps_the_status(
    database: Database,
) -> None:
    await register(database, "node-3")
    until = datetime.now(UTC) + timedelta(hours=1)
    async with database.write() as session:
        await nodes.start_maintenance(session, "node-3", note=None, until=until, caller=OPERATOR)
    assert (await beat(database, "node-3", degraded=True)).status is NodeStatus.MAINTENANCE
    node = await get_node(database, "node-3")
    assert (node.status, node.reported_degraded) == (NodeStatus.MAINTENANCE, True)
    assert node.maintenance_until == until
    assert await fetch_rows(database, "SELECT status FROM heartbeat_log") == [("maintenance",)]


async def test_node_may_occur_several_times_in_a_batch(database: Database) -> None:
    node, _ = await register(database, "node-3")
    outcomes = await record(
        database,
        make_report("node-3", 1, metrics={"n": 1}),
        make_report("unknown", 1),
        make_report("node-3", 3, degraded=True, metrics={"n": 3}),
        make_report("node-3", 2, metrics={"n": 2}),
        make_report("unknown", 2),
        make_report("node-3", 4, metrics={"n": 4}),
    )
    statuses = [outcome.status for outcome in outcomes if isinstance(outcome, HeartbeatAck)]
    assert statuses == ["online", "degraded", "degraded", "online"]
    assert [type(outcomes[i]) for i in (1, 4)] == [NodeNotFound, NodeNotFound]
    assert [row[2] for row in await fetch_rows(database, LOGGED)] == ["1", "3", "4"]
    assert [change.status for change in await list_changes(database, node.id)] == [
        "online",
        "degraded",
        "online",
    ]


async def test_unknown_node_stays_unknown_for_the_whole_batch(database: Database) -> None:
    """Otherwise the batch would lock it after the log's counter, against the order of locks."""
    await register(database, "node-3")
    batch = [
        make_report("node-3", 1, degraded=True),
        make_report("node-4", 1),
        make_report("node-4", 2),
    ]
    async with database.write() as session:
        recording = heartbeats.record_in_transaction(session, batch, RULES)
        async with database.write() as other:
            await other.execute(text("SELECT FROM nodes WHERE node_id = 'node-3' FOR UPDATE"))
            task = asyncio.create_task(recording)
            await wait_for_lock(database)
            await other.execute(
                text(
                    "INSERT INTO nodes (node_id, node_name, node_role, node_type, status,"
                    " status_reason, boot_id) VALUES ('node-4', 'node-4', 'backup', 'worker',"
                    " 'online', 'registered', 'boot-1')"
                )
            )
        outcomes = await task
    assert [type(outcome) for outcome in outcomes] == [HeartbeatAck, NodeNotFound, NodeNotFound]


async def test_batches_in_opposite_orders_never_deadlock(database: Database) -> None:
    fleet = [f"node-{n:03}" for n in range(200)]
    async with database.write() as session:
        for node_id in fleet:
            await registration.register(
                session, make_registration(node_id), rules=RULES, caller=AGENT
            )

    async def write(writer: int) -> list[HeartbeatAck]:
        acks = []
        for round_ in range(5):
            node_ids = fleet[::-1] if (writer + round_) % 2 else fleet
            degraded = (writer + round_) % 3 == 0
            sequence = round_ * 4 + writer
            outcomes = await record(
                database,
                *(make_report(node_id, sequence, degraded=degraded) for node_id in node_ids),
            )
            acks += [outcome for outcome in outcomes if isinstance(outcome, HeartbeatAck)]
        return acks

    outcomes = await asyncio.gather(*(write(writer) for writer in range(4)))
    assert sum(map(len, outcomes)) == 4 * 5 * 200
    query = "SELECT count(*), count(DISTINCT node_id) FROM heartbeat_log"
    [(heartbeat_count, node_count)] = await fetch_rows(database, query)
    assert node_count == 200
    assert 5 * 200 <= heartbeat_count <= 4 * 5 * 200
    assert await fetch_rows(
        database,
        "SELECT count(*) FROM nodes n JOIN heartbeat_log h"
        " ON h.id = n.last_heartbeat_id AND h.timestamp = n.last_heartbeat"
        " AND h.node_id = n.id AND h.status = n.status",
    ) == [(200,)]


async def test_each_acknowledged_heartbeat_of_many_writers_is_one_row(
    database: Database,
) -> None:
    fleet = [f"node-{n}" for n in range(8)]
    for node_id in fleet:
        await register(database, node_id)

    async def write(writer: int) -> None:
        for round_ in range(5):
            sequence = round_ * 6 + writer
            metrics = {"sequence": sequence}
            await record(
                database, *(make_report(node_id, sequence, metrics=metrics) for node_id in fleet)
            )

    await asyncio.gather(*(write(writer) for writer in range(6)))
    for node_id in fleet:
        rows = await fetch_rows(
            database,
            "SELECT (metrics->>'sequence')::int, h.timestamp FROM heartbeat_log h"
            " JOIN nodes n ON n.id = h.node_id WHERE n.node_id = :node_id ORDER BY h.id",
            node_id=node_id,
        )
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})
        assert [row[1] for row in rows] == sorted(row[1] for row in rows)
        assert rows[-1][0] == 4 * 6 + 5


async def test_heartbeat_never_moves_the_last_heartbeat_back(database: Database) -> None:
    """The database's clock can be set back."""
    await register(database, "node-3")
    first = await beat(database, "node-3", 1)
    await age(database, -3600, "node-3")
    ahead = await get_node(database, "node-3")
    second = await beat(database, "node-3", 2)
    assert second.received_at == ahead.heard_at
    assert second.received_at > first.received_at
    assert (await get_node(database, "node-3")).last_heartbeat == second.received_at


async def test_heartbeat_of_a_removed_node_is_rejected(database: Database) -> None:
    node, _ = await register(database, "node-3")
    async with database.write() as session:
        await nodes.deregister(session, "node-3", note=None, caller=OPERATOR)
    [outcome] = await record(database, make_report("node-3"))
    assert isinstance(outcome, NodeNotFound)
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(0,)]
    assert (await list_changes(database, node.id))[-1].reason is StatusReason.DEREGISTERED


async def assert_unchanged(database: Database, node: Node) -> None:
    """Assert that the removed node is still OFFLINE and has no heartbeat."""
    rows = await fetch_rows(
        database, "SELECT status, last_heartbeat FROM nodes WHERE id = :id", id=node.id
    )
    assert rows == [("offline", None)]


async def test_waiting_heartbeat_sees_the_committed_changes(database: Database) -> None:
    """After the wait it sees the newest version of each row, not that of its snapshot."""
    for node_id in ("replaced", "removed", "overtaken", "maintained", "expired", "steady"):
        await register(database, node_id)
    removed = await get_node(database, "removed")
    batch = [
        make_report(node_id, 5) for node_id in ("replaced", "removed", "overtaken", "maintained")
    ]
    batch += [make_report("expired", 5), make_report("steady", 5)]
    async with database.write() as other:
        await heartbeats.record_in_transaction(
            other, [replace(make_report("overtaken", 6), degraded=True)], RULES
        )
        await other.execute(
            text("UPDATE nodes SET heard_at = heard_at - interval '1h' WHERE node_id <> 'steady'")
        )
        await mark_registry_running(other)
        await registration.register(
            other, make_registration("replaced", "boot-2"), rules=RULES, caller=AGENT
        )
        await nodes.deregister(other, "removed", note=None, caller=OPERATOR)
        await nodes.start_maintenance(other, "maintained", note=None, until=None, caller=OPERATOR)
        await sweep.sweep(other, PROCESS, RULES)
        recording = asyncio.create_task(record(database, *batch))
        await wait_for_lock(database)
    outcomes = await recording
    assert [type(outcome) for outcome in outcomes[:2]] == [StaleBoot, NodeNotFound]
    assert [outcome.status for outcome in outcomes[2:] if isinstance(outcome, HeartbeatAck)] == [
        "offline",
        "maintenance",
        "online",
        "online",
    ]
    await assert_unchanged(database, removed)
    assert (await get_node(database, "replaced")).last_heartbeat is None
    assert (await get_node(database, "overtaken")).last_sequence == 6
    expired = await get_node(database, "expired")
    changes = await list_changes(database, expired.id)
    assert [change.status for change in changes] == ["online", "offline", "online"]
    assert expired.last_heartbeat == expired.heard_at


async def test_batch_that_cannot_be_written_changes_nothing(database: Database) -> None:
    await register(database, "node-3")
    before = await get_node(database, "node-3")
    short_timeout = Database(database.url, statement_timeout_seconds=0.1)
    async with database.write() as other:
        await other.execute(text("SELECT FROM nodes FOR UPDATE"))
        with pytest.raises(Unavailable):
            await record(short_timeout, make_report("node-3", degraded=True))
    await short_timeout.close()
    assert await get_node(database, "node-3") == before
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(0,)]


async def test_batch_takes_one_statement_unless_a_status_changes(
    database: Database,
) -> None:
    for node_id in ("steady", "ailing"):
        await register(database, node_id)
    with record_statements(database) as sent:
        await record(database, make_report("steady"), make_report("ailing"), make_report("unknown"))
        await asyncio.sleep(0)  # the driver reports it in the loop's next iteration
    assert len(sent) == 1
    mixed = (
        make_report("steady", 2),
        make_report("ailing", 2, degraded=True),
        make_report("ailing", 3),
    )
    with record_statements(database) as sent:
        steady, *ailing = await record(database, *mixed)
        await asyncio.sleep(0)
    assert len(sent) > 1
    assert isinstance(steady, HeartbeatAck)
    assert steady.status == NodeStatus.ONLINE
    assert [outcome.status for outcome in ailing if isinstance(outcome, HeartbeatAck)] == [
        NodeStatus.DEGRADED,
        NodeStatus.ONLINE,
    ]
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(5,)]


async def test_failed_status_change_fails_no_unchanging_heartbeat(
    database: Database,
) -> None:
    for node_id in ("steady", "ailing"):
        await register(database, node_id)
    short_timeout = Database(database.url, statement_timeout_seconds=1)
    async with database.write() as other:
        await other.execute(text("SELECT FROM registry_state FOR UPDATE"))
        steady, ailing = await record(
            short_timeout, make_report("steady"), make_report("ailing", degraded=True)
        )
    await short_timeout.close()
    assert isinstance(steady, HeartbeatAck)
    assert isinstance(ailing, Unavailable)
    assert short_timeout.failure_count == 1
    assert (await get_node(database, "steady")).last_sequence == 1
    assert (await get_node(database, "ailing")).last_sequence is None


STATUSES = st.sampled_from(
    [
        ("online", "heartbeat"),
        ("degraded", "missed_heartbeats"),
        ("degraded", "self_reported"),
        ("degraded", "flapping"),
        ("offline", "missed_heartbeats"),
        ("maintenance", "maintenance_started"),
    ]
)
BOOTS = st.sampled_from(["boot-1", "boot-1", "boot-0"])
REPORTS = st.tuples(st.integers(0, 2), BOOTS, st.integers(1, 5))


@given(
    st.lists(STATUSES, min_size=2, max_size=2),
    st.lists(st.tuples(REPORTS, st.booleans()), min_size=1, max_size=9),
)
@limit_examples(40)
async def test_batch_has_the_same_result_in_one_round_trip_and_in_a_transaction(
    database: Database,
    statuses: list[tuple[str, str]],
    batch: list[tuple[tuple[int, str, int], bool]],
) -> None:
    """The third node is not registered."""
    outcomes, states = [], []
    for method in ("directly", "by-session"):
        name = f"{method}-{secrets.token_hex(4)}"
        for number, (status, reason) in enumerate(statuses):
            await register(database, f"{name}-{number}")
            await set_status(database, f"{name}-{number}", status, reason)
        reports = [
            make_report(
                f"{name}-{number}", sequence, boot, degraded=degraded, metrics={"of": index}
            )
            for index, ((number, boot, sequence), degraded) in enumerate(batch)
        ]
        if method == "directly":
            acks = await heartbeats.record_batch(database, reports, RULES)
        else:
            async with database.write() as session:
                acks = await heartbeats.record_in_transaction(session, reports, RULES)
        outcomes.append(
            [
                outcome.status if isinstance(outcome, HeartbeatAck) else outcome.code
                for outcome in acks
            ]
        )
        states.append(await fetch_rows(database, READ_STATES, pattern=f"{name}-%"))
    assert outcomes[0] == outcomes[1]
    assert states[0] == states[1]


async def set_status(database: Database, node_id: str, status: str, reason: str) -> None:
    """Give a node this status and reason, as after its heartbeat 1."""
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE nodes SET status = :status, status_reason = CAST(:reason AS text),"
                " last_sequence = 1,"
                " steady_since = CASE WHEN CAST(:reason AS text) = 'flapping' THEN now() END"
                " WHERE node_id = :node"
            ),
            {"status": status, "reason": reason, "node": node_id},
        )


READ_STATES = """
SELECT n.status, n.status_reason, n.last_sequence, n.reported_degraded,
       (SELECT array_agg(h.status || h.metrics::text ORDER BY h.id) FROM heartbeat_log h
        WHERE h.node_id = n.id),
       (SELECT array_agg(c.status || c.reason ORDER BY c.revision) FROM status_changes c
        WHERE c.node_id = n.id)
FROM nodes n WHERE n.node_id LIKE :pattern ORDER BY n.node_id
"""
