"""Flap damping: a node that changes too often is kept DEGRADED until it has been steady."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.enums import NodeStatus, StatusReason
from db.registry.liveness_rules import LivenessRules
from db.registry.status_changes import Transition

# Only transitions caused by missed heartbeats and the returns from them count as flapping, not
# what a node reports of itself or an operator sets. A node returns from FLAPPING after it was
# steady for long enough; that return counts for the whole limit, so its next fall within the
# window makes it FLAPPING again.
_FIND_FLAPPING = text("""
SELECT n.id
FROM nodes n, LATERAL (
    SELECT sum(CASE cause WHEN 'flapping' THEN CAST(:transitions AS int) ELSE 1 END) AS transitions
    FROM (
        SELECT reason, changed_at, previous_status <> status AS moved,
               lag(reason) OVER (ORDER BY revision) AS cause
        FROM (
            SELECT * FROM status_changes c WHERE c.node_id = n.id ORDER BY revision DESC LIMIT 50
        ) newest
    ) judged
    WHERE moved
      AND ('missed_heartbeats' IN (reason, cause) OR (reason, cause) = ('heartbeat', 'flapping'))
      AND changed_at > registry_now() - make_interval(secs => :window)
) counted
WHERE n.id = ANY(CAST(:nodes AS uuid[])) AND n.status_reason <> 'flapping'
  AND transitions >= :transitions
""")


async def damp_flapping(
    session: AsyncSession, transitions: Sequence[Transition], rules: LivenessRules
) -> list[Transition]:
    """Return the transitions, with DEGRADED for FLAPPING in place of ONLINE for flapping nodes.

    The result has one transition for each given, in the same order.
    """
    returning = [t.node for t in transitions if t.status is NodeStatus.ONLINE and t.previous]
    if not returning:
        return list(transitions)
    parameters = {
        "nodes": returning,
        "transitions": rules.flap_transitions,
        "window": rules.flap_window,
    }
    flapping = set(await session.scalars(_FIND_FLAPPING, parameters))
    return [
        replace(t, status=NodeStatus.DEGRADED, reason=StatusReason.FLAPPING)
        if t.node in flapping and t.status is NodeStatus.ONLINE
        else t
        for t in transitions
    ]
