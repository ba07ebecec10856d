"""The cost of a sweep when nothing is due: PostgreSQL reads each node once and locks none."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.registry import heartbeats, sweep
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules

RULES = LivenessRules(remove_offline_after={"ephemeral": 3600})
NODES = 10_000
PARAMETERS = {"grace": RULES.grace, "flap_steady": RULES.flap_steady}

FLEET = """
INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason, labels,
                   boot_id, heard_at, heartbeat_interval_seconds)
SELECT 'node-' || n, 'node-' || n, 'production', 'worker', 'online', 'registered',
       ARRAY['ephemeral'], 'boot', now(), 600
FROM generate_series(1, CAST(:nodes AS int)) AS n
"""


@pytest.fixture
async def fleet(database: Database) -> Database:
    """Nodes of which none is due for a long time, and a registry that runs."""
    async with database.write() as session:
        await session.execute(text(FLEET), {"nodes": NODES})
        await sweep.sweep(session, uuid4(), RULES)
    async with database.read() as session:
        await session.execute(text("VACUUM ANALYZE nodes"))
    return database


def _walk_plan(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _walk_plan(child)


async def _explain(
    session: AsyncSession, statement: TextClause, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the steps of the plan with what was measured when it ran."""
    explain = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}")
    rows = (await session.execute(explain, parameters)).scalar_one()
    return list(_walk_plan(rows[0]["Plan"]))


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        (sweep._CENSUS, PARAMETERS),  # noqa: SLF001  # the statement that the product runs
        (sweep._SELECT_DUE, PARAMETERS),  # noqa: SLF001  # as above
        (
            sweep._SELECT_EXPIRED,  # noqa: SLF001  # as above
            {**PARAMETERS, "labels": ["ephemeral"], "seconds": [3600.0]},
        ),
    ],
    ids=["census", "due", "removable"],
)
async def test_statement_of_a_sweep_without_due_nodes_reads_each_node_once(
    fleet: Database, statement: TextClause, parameters: dict[str, Any]
) -> None:
    async with fleet.write() as session:
        steps = await _explain(session, statement, parameters)
    scans = [step for step in steps if step.get("Relation Name") == "nodes"]
    assert [scan["Actual Loops"] for scan in scans] == [1]
    # In the order of the heap: an index would visit each page many times.
    assert scans[0]["Node Type"] == "Seq Scan"
    assert not [step for step in steps if "Sort" in step["Node Type"]]
    pages = sum(scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] for scan in scans)
    assert pages <= NODES / 10


async def test_sweep_without_due_nodes_locks_no_node(
    fleet: Database,
) -> None:
    async with fleet.write() as sweep_session:
        result = await sweep.sweep(sweep_session, uuid4(), RULES)
        assert (result.changed_nodes, result.live_nodes) == (0, NODES)
        async with fleet.write() as session:
            await session.execute(text("SET LOCAL lock_timeout = '1s'"))
            await session.execute(text("SELECT id FROM nodes FOR UPDATE NOWAIT"))
        async with fleet.write() as session:
            await session.execute(text("SET LOCAL lock_timeout = '1s'"))
            reports = [HeartbeatReport(f"node-{n}", "boot", 1) for n in range(1, 1001)]
            outcomes = await heartbeats.record_in_transaction(session, reports, RULES)
        assert all(isinstance(outcome, HeartbeatAck) for outcome in outcomes)


async def test_sweep_does_not_wait_for_uncommitted_heartbeats(fleet: Database) -> None:
    async with fleet.write() as session:
        await session.execute(text("UPDATE nodes SET heard_at = now() - interval '10 h'"))
        await session.execute(text("UPDATE registry_state SET lease_floor = '-infinity'"))
    async with fleet.write() as heartbeat_session:
        await heartbeats.record_in_transaction(
            heartbeat_session,
            [HeartbeatReport(f"node-{n}", "boot", 1) for n in range(1, 11)],
            RULES,
        )
        async with fleet.write() as session:
            await session.execute(text("SET LOCAL lock_timeout = '1s'"))
            # Nodes locked by heartbeats are left for the next sweep, and so is the log.
            due = await session.execute(sweep._SELECT_DUE, PARAMETERS)  # noqa: SLF001  # as above
            assert len(due.all()) == sweep.SWEEP_LIMIT
