"""The registry's own pulse: which processes are at work, and since when leases count."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.registry.liveness_rules import Pulse, Rules

_FEEL = text("""
SELECT registry_now() AS now, max(p.seen_at) AS newest, min(p.seen_at) AS oldest, s.lease_floor
FROM registry_state s LEFT JOIN registry_processes p ON true
GROUP BY s.lease_floor
""")

_BEAT = text("""
INSERT INTO registry_processes (id, started_at, seen_at)
VALUES (:process, registry_now(), registry_now())
ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at
""")

# One that was stopped in the middle of its sweep holds its row: nobody waits for it.
_FORGET_SILENT = text("""
DELETE FROM registry_processes
WHERE id IN (
    SELECT id FROM registry_processes
    WHERE seen_at NOT BETWEEN registry_now() - make_interval(secs => :patience)
                          AND registry_now() + make_interval(secs => :patience)
    FOR UPDATE SKIP LOCKED
)
""")

# After the clock was set back, what was heard "later" than now would never be overdue, and a mode
# that began "later" would not end. Nodes are locked in the order of their ids and before the
# registry's row, as heartbeats do it.
_TAKE_BACK_THE_FUTURE = text("""
UPDATE nodes
SET heard_at = registry_now(), steady_since = least(steady_since, registry_now())
WHERE id IN (
    SELECT id FROM nodes WHERE heard_at > registry_now() ORDER BY id FOR UPDATE
)
""")
_BEGIN_LEASES_ANEW = text("""
UPDATE registry_state
SET lease_floor = registry_now(), mode_since = least(mode_since, registry_now())
""")

_LEAVE = text("DELETE FROM registry_processes WHERE id = :process")


async def beat(session: AsyncSession, process: UUID, rules: Rules) -> datetime | None:
    """Says that this process is at work; if the registry was deaf, since when it may have been.

    Then every lease begins anew: nobody is marked for time in which nobody could hear.
    """
    row = (await session.execute(_FEEL)).one()
    deaf = rules.was_deaf(row.now, Pulse(row.newest, row.oldest, row.lease_floor))
    await session.execute(_FORGET_SILENT, {"patience": rules.patience})
    await session.execute(_BEAT, {"process": process})
    if not deaf:
        return None
    await session.execute(_TAKE_BACK_THE_FUTURE)
    await session.execute(_BEGIN_LEASES_ANEW)
    since: datetime = row.oldest or row.now
    return since


async def leave(session: AsyncSession, process: UUID) -> None:
    """A process that ends as it should is not missed."""
    await session.execute(_LEAVE, {"process": process})
