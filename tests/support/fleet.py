"""Nodes for the tests of `db`: register, report, age; time moves by ageing rows."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeRole, NodeType, Role
from db.core.errors import RegistryError
from db.core.identity import Caller, Identity
from db.core.tables import Node
from db.registry import heartbeats, nodes, registration, status_changes, sweep
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from db.registry.registration import Registration
from db.registry.status_changes import LoggedChange
from tests.support.waiting import wait_until

RULES = LivenessRules(protect_min_nodes=1_000_000)
"""The rules of most tests, without PROTECTED mode, which has tests of its own."""
PROCESS = uuid4()
AGENT = Caller(Identity("agent", Role.AGENT), "192.0.2.10")
OPERATOR = Caller(Identity("op", Role.OPERATOR), "192.0.2.20")
OVERDUE = RULES.min_interval * 1.1 + RULES.grace + 1
"""Seconds of silence after which a node is overdue, whatever the jitter."""
EXPIRED = 3 * RULES.min_interval * 1.1 + RULES.grace + 1


def limit_examples(count: int) -> settings:
    """Return Hypothesis settings; each example clears and uses the one database of its test."""
    return settings(
        max_examples=count,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def make_registration(node_id: str | None, boot_id: str = "boot-1", **fields: Any) -> Registration:
    return Registration(
        **{
            "role": NodeRole.DEVELOPMENT,
            "type": NodeType.WORKER,
            "boot_id": boot_id,
            "node_id": node_id,
            **fields,
        }
    )


async def register(
    database: Database, node_id: str | None, boot_id: str = "boot-1", **fields: Any
) -> tuple[Node, bool]:
    async with database.write() as session:
        return await registration.register(
            session, make_registration(node_id, boot_id, **fields), rules=RULES, caller=AGENT
        )


def make_report(
    node_id: str, sequence: int = 1, boot_id: str = "boot-1", **fields: Any
) -> HeartbeatReport:
    return HeartbeatReport(node_id, boot_id, sequence, **{"actor": "agent", **fields})


async def record(
    database: Database, *reports: HeartbeatReport
) -> list[HeartbeatAck | RegistryError]:
    return await heartbeats.record_batch(database, reports, RULES)


async def beat(database: Database, node_id: str, sequence: int = 1, **fields: Any) -> HeartbeatAck:
    """Send a heartbeat that must be accepted."""
    [outcome] = await record(database, make_report(node_id, sequence, **fields))
    assert isinstance(outcome, HeartbeatAck)
    return outcome


async def age(database: Database, seconds: float, node_id: str | None = None) -> None:
    """Move the last contact of the node, or of every node, back by so many seconds."""
    async with database.write() as session:
        await _backdate_registry_state(session)
        await session.execute(
            text(
                "UPDATE nodes SET heard_at = heard_at - make_interval(secs => :seconds)"
                " WHERE node_id = coalesce(CAST(:node_id AS text), node_id)"
            ),
            {"seconds": seconds, "node_id": node_id},
        )


async def mark_registry_running(session: AsyncSession) -> None:
    """Write the rows of a registry that ran without an outage, so that no lease is extended."""
    write_heartbeat = """
    INSERT INTO registry_processes (id, seen_at) VALUES (:process, now())
    ON CONFLICT (id) DO UPDATE SET seen_at = now()
    """
    await session.execute(text(write_heartbeat), {"process": PROCESS})
    await _backdate_registry_state(session)


async def _backdate_registry_state(session: AsyncSession) -> None:
    statement = """
    UPDATE registry_state SET lease_floor = '2020-01-01',
        mode_since = CASE WHEN mode = 'normal' THEN '2020-01-01' ELSE mode_since END
    """
    await session.execute(text(statement))


LATER = datetime(2100, 1, 1, tzinfo=UTC)


async def expire_maintenance(session: AsyncSession, node_id: str) -> None:
    """Move the end of a maintenance into the past, if it has one."""
    statement = """
    UPDATE nodes SET maintenance_until = now()
    WHERE maintenance_until IS NOT NULL AND node_id = :node_id AND removed_at IS NULL
    """
    await session.execute(text(statement), {"node_id": node_id})


async def run_sweep(database: Database) -> int:
    async with database.write() as session:
        await mark_registry_running(session)
        return (await sweep.sweep(session, PROCESS, RULES)).changed_nodes


async def get_node(database: Database, node_id: str) -> Node:
    """Return the current node, which must exist."""
    async with database.read() as session:
        node = await nodes.find_node(session, node_id)
    assert node is not None
    return node


async def list_changes(database: Database, node: UUID | None = None) -> list[LoggedChange]:
    """Return the change log, or that of one node, oldest first."""
    async with database.open_connection() as connection:
        logged, _ = await status_changes.list_changes_after(connection, 0)
    return [change for change in logged if node in (None, change.node)]


async def fetch_rows(database: Database, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    async with database.read() as session:
        return [tuple(row) for row in await session.execute(text(sql), values)]


async def wait_for_lock(database: Database) -> None:
    """Wait until some transaction waits for a lock."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def is_waited_for() -> bool:
        return await fetch_rows(database, waiting) != [(0,)]

    await wait_until(is_waited_for)


async def clear(session: AsyncSession) -> None:
    """Delete every node, the seeded ones too, and restart the change log."""
    for table in ("status_changes", "node_profiles", "role_profiles", "heartbeat_log", "nodes"):
        await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608  # a name of ours
    await session.execute(text("UPDATE registry_state SET revision = 0"))
