"""Nodes for the tests of `db`: registered, heard, aged; time moves by ageing rows."""

from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db import changes, heartbeats, liveness, nodes, registration
from db.changes import LoggedChange
from db.database import Database
from db.errors import RegistryError
from db.heartbeats import HeartbeatReport, Recorded
from db.liveness import Pace
from db.registration import Registration
from db.tables import Node
from db.values import NodeRole, NodeType

PACE = Pace()
OVERDUE = PACE.min_interval * 1.1 + PACE.grace + 1
"""Seconds of silence after which a node is overdue, whatever the jitter."""
EXPIRED = 3 * PACE.min_interval * 1.1 + PACE.grace + 1


def examples(count: int) -> settings:
    """Each example runs on the one database of its test, which it clears first."""
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def registration_of(node_id: str | None, boot_id: str = "boot-1", **said: Any) -> Registration:
    return Registration(
        **{
            "role": NodeRole.DEVELOPMENT,
            "type": NodeType.WORKER,
            "boot_id": boot_id,
            "node_id": node_id,
            **said,
        }
    )


async def register(
    database: Database, node_id: str | None, boot_id: str = "boot-1", **said: Any
) -> tuple[Node, bool]:
    async with database.write() as session:
        return await registration.register(
            session, registration_of(node_id, boot_id, **said), pace=PACE, actor="agent"
        )


def report(
    node_id: str, sequence: int = 1, boot_id: str = "boot-1", **said: Any
) -> HeartbeatReport:
    return HeartbeatReport(node_id, boot_id, sequence, **said)


async def record(database: Database, *reports: HeartbeatReport) -> list[Recorded | RegistryError]:
    async with database.write() as session:
        return await heartbeats.record(session, reports, pace=PACE, actor="agent")


async def beat(database: Database, node_id: str, sequence: int = 1, **said: Any) -> Recorded:
    """A heartbeat that must be heard."""
    [outcome] = await record(database, report(node_id, sequence, **said))
    assert isinstance(outcome, Recorded)
    return outcome


async def age(database: Database, seconds: float, node_id: str | None = None) -> None:
    """Makes it that much longer ago that the node, or every node, was heard."""
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE nodes SET heard_at = heard_at - make_interval(secs => :seconds)"
                " WHERE node_id = coalesce(CAST(:node_id AS text), node_id)"
            ),
            {"seconds": seconds, "node_id": node_id},
        )


async def sweep(database: Database) -> int:
    async with database.write() as session:
        return await liveness.sweep(session, PACE)


async def stand(database: Database, node_id: str) -> Node:
    """The node as it stands."""
    async with database.read() as session:
        node = await nodes.find(session, node_id)
    assert node is not None
    return node


async def changes_of(database: Database, node: UUID | None = None) -> list[LoggedChange]:
    """The change log, or one node's part of it, oldest first."""
    async with database.read() as session:
        logged = await changes.after(session, 0)
    return [change for change in logged if node in (None, change.node)]


async def rows(database: Database, sql: str, **values: Any) -> list[tuple[Any, ...]]:
    async with database.read() as session:
        return [tuple(row) for row in await session.execute(text(sql), values)]


async def clear(session: AsyncSession) -> None:
    """Forgets every node, the seeded ones too, and begins the change log anew."""
    for table in ("status_changes", "node_profiles", "role_profiles", "heartbeat_log", "nodes"):
        await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608  # a name of ours
    await session.execute(text("UPDATE registry_state SET revision = 0"))
