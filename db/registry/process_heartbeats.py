"""The registry's own heartbeats: which of its processes run, and from when on leases count."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.registry.liveness_rules import LivenessRules, ProcessHeartbeats

_READ_PROCESS_HEARTBEATS = text("""
SELECT registry_now() AS now, max(p.seen_at) AS newest, min(p.seen_at) AS oldest, s.lease_floor
FROM registry_state s LEFT JOIN registry_processes p ON true
GROUP BY s.lease_floor
""")

_WRITE_PROCESS_HEARTBEAT = text("""
INSERT INTO registry_processes (id, started_at, seen_at)
VALUES (:process, registry_now(), registry_now())
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at
""")

# A process that was suspended during its sweep still locks its row, so locked rows are skipped.
_DELETE_SILENT_PROCESSES = text("""
DELETE FROM registry_processes
WHERE id IN (
    SELECT id FROM registry_processes
    WHERE seen_at NOT BETWEEN registry_now() - make_interval(secs => :patience)
                          AND registry_now() + make_interval(secs => :patience)
    FOR UPDATE SKIP LOCKED
)
""")

# After the clock was set back, a node heard "later" than now would never be overdue, and a mode
# that began "later" would not end. Nodes are locked in the order of their ids and before the
# registry's row, as heartbeats lock them.
_CLAMP_FUTURE_TIMES = text("""
UPDATE nodes
SET heard_at = registry_now(), steady_since = least(steady_since, registry_now())
WHERE id IN (
    SELECT id FROM nodes WHERE heard_at > registry_now() ORDER BY id FOR UPDATE
)
""")
_RAISE_LEASE_FLOOR = text("""
UPDATE registry_state
SET lease_floor = registry_now(), mode_since = least(mode_since, registry_now())
""")

_DELETE_PROCESS = text("DELETE FROM registry_processes WHERE id = :process")


async def record_process_heartbeat(
    session: AsyncSession, process: UUID, rules: LivenessRules
) -> datetime | None:
    """Record that this process runs; after an outage, return since when it may have lasted.

    After an outage of the registry the lease floor is raised to now, so that no node is marked for
    heartbeats that could not be received.
    """
    row = (await session.execute(_READ_PROCESS_HEARTBEATS)).one()
    has_had_outage = rules.has_had_outage(
        row.now, ProcessHeartbeats(row.newest, row.oldest, row.lease_floor)
    )
    await session.execute(_DELETE_SILENT_PROCESSES, {"patience": rules.process_timeout})
    await session.execute(_WRITE_PROCESS_HEARTBEAT, {"process": process})
    if not has_had_outage:
        return None
    await session.execute(_CLAMP_FUTURE_TIMES)
    await session.execute(_RAISE_LEASE_FLOOR)
    since: datetime = row.oldest or row.now
    return since


async def remove_process(session: AsyncSession, process: UUID) -> None:
    """Forget a process that ends normally, so that it does not count as silent."""
    await session.execute(_DELETE_PROCESS, {"process": process})
