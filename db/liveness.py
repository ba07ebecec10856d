"""Liveness: when a node is heard, overdue or gone, by the database's clock alone.

A node is overdue one interval and the grace after it was last heard (DEGRADED), and its lease ends
three intervals and the grace after that moment (OFFLINE). The interval is the one that the last
reply promised to its agent.
"""

import random
from dataclasses import dataclass

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db import changes
from db.changes import Transition
from db.tables import NODE
from db.values import NodeStatus, StatusReason

TTL_INTERVALS = 3
_JITTER = 0.1
SWEEP_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Pace:
    """How often agents send heartbeats; all in seconds, but for the rate."""

    min_interval: float = 10.0
    grace: float = 5.0
    target_rate: float = 1000.0
    live_nodes: int = 0

    @property
    def interval(self) -> float:
        return max(self.min_interval, self.live_nodes / self.target_rate)

    def next_interval(self) -> float:
        """Up to a tenth longer than the interval, so that a fleet never beats in step."""
        return self.interval * random.uniform(1, 1 + _JITTER)  # noqa: S311  # no secret


STATUS_BY_HEARTBEATS = f"""
CASE WHEN heard_at IS NULL
       OR heard_at + make_interval(secs => {TTL_INTERVALS} * heartbeat_interval_seconds + :grace)
          <= now()
     THEN 'offline'
     WHEN reported_degraded
       OR heard_at + make_interval(secs => heartbeat_interval_seconds + :grace) <= now()
     THEN 'degraded'
     ELSE 'online' END
"""
"""What the heartbeats say of a row of `nodes`, maintenance aside."""

_DUE = text(f"""
SELECT id, status, {STATUS_BY_HEARTBEATS} AS next
FROM nodes
WHERE removed_at IS NULL
  AND (status = 'online'
       AND heard_at + make_interval(secs => heartbeat_interval_seconds + :grace) <= now()
    OR status = 'degraded'
       AND heard_at + make_interval(secs => {TTL_INTERVALS} * heartbeat_interval_seconds + :grace)
           <= now()
    OR status = 'maintenance' AND maintenance_until <= now())
ORDER BY id
LIMIT {SWEEP_LIMIT}
FOR UPDATE SKIP LOCKED
""")  # noqa: S608  # nothing in it comes from outside


async def sweep(session: AsyncSession, pace: Pace) -> int:
    """Marks what is overdue and ends maintenance whose time is up; returns how many changed.

    At most 1,000 in one call. Replicas may sweep at once: each row is one sweep's alone.
    """
    due = await session.execute(_DUE, {"grace": pace.grace})
    transitions = [
        Transition(
            row.id,
            NodeStatus(row.status),
            NodeStatus(row.next),
            StatusReason.MAINTENANCE_ENDED
            if row.status == NodeStatus.MAINTENANCE
            else StatusReason.MISSED_HEARTBEATS,
        )
        for row in due
    ]
    if transitions:
        await changes.apply(session, transitions)
    return len(transitions)


async def count_live(session: AsyncSession) -> int:
    """Nodes that are expected to send heartbeats."""
    live = select(func.count()).where(
        NODE.removed_at.is_(None), NODE.status.in_([NodeStatus.ONLINE, NodeStatus.DEGRADED])
    )
    return (await session.scalars(live)).one()
