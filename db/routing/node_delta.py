"""The changes of all nodes since the last read, as candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, column, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.tables import HEARTBEAT, NODE
from db.routing.candidates import Candidate, make_candidate


@dataclass(frozen=True, slots=True)
class NodeDelta:
    """The changes up to one consistent moment. The next read begins at `horizon`."""

    horizon: int
    revision: int
    observed_at: datetime
    changed: Sequence[Candidate]
    removed: Sequence[UUID]


# A row counts as changed if it was written by a transaction that had not ended at the last read.
# Any timestamp would miss a row whose commit was slow. Transaction ids are compared by age, because
# they wrap around.
_READ_DELTA = text("""
SELECT s.horizon, s.revision, s.now, n.id, n.node_id, n.status, n.node_role, n.node_type, n.labels,
       n.capabilities, n.removed_at, h.metrics
FROM (
    SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS horizon,
           revision, registry_now() AS now
    FROM registry_state
) s
LEFT JOIN nodes n ON CASE WHEN CAST(:horizon AS text) IS NULL THEN n.removed_at IS NULL
                          ELSE age(n.xmin) <= age(CAST(CAST(:horizon AS text) AS xid)) END
LEFT JOIN heartbeat_log h ON h.id = n.last_heartbeat_id AND h.timestamp = n.last_heartbeat
""").columns(
    column("horizon", BigInteger),
    column("revision", BigInteger),
    column("now", DateTime(timezone=True)),
    *(NODE[name] for name in ("id", "node_id", "status", "node_role", "node_type", "labels")),
    NODE.capabilities,
    NODE.removed_at,
    HEARTBEAT.metrics,
)

_XID_MODULUS = 2**32


async def read_delta(session: AsyncSession, horizon: int | None) -> NodeDelta:
    """Return what changed since the read that returned this horizon; every node if it is None."""
    since = None if horizon is None else str(horizon % _XID_MODULUS)
    rows = (await session.execute(_READ_DELTA, {"horizon": since})).all()
    nodes = [row for row in rows if row.id is not None]
    return NodeDelta(
        rows[0].horizon,
        rows[0].revision,
        rows[0].now,
        changed=[
            make_candidate(
                row.id,
                row.node_id,
                row.status,
                row.node_role,
                row.node_type,
                labels=row.labels,
                capabilities=row.capabilities,
                metrics=row.metrics,
            )
            for row in nodes
            if row.removed_at is None
        ],
        removed=[row.id for row in nodes if row.removed_at is not None],
    )
