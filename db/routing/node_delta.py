"""The changes of all nodes since the last read, as candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import BigInteger, DateTime, Result, Row, Text, column, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.tables import NODE
from db.core.turns import Steps, collect, take_turns
from db.routing.candidates import Candidate, make_candidate


@dataclass(frozen=True, slots=True)
class NodeDelta:
    """The changes up to one consistent moment. The next read begins at `horizon`."""

    horizon: int
    revision: int
    observed_at: datetime
    changed: Sequence[Candidate]
    removed: Sequence[UUID]
    unreadable: Sequence[tuple[UUID, Exception]] = ()
    """The nodes that no candidate can be made of, each with the reason; they are in `removed`."""


# A row counts as changed if it was written by a transaction that had not ended at the last read.
# Any timestamp would miss a row whose commit was slow. Transaction ids are compared by age, because
# they wrap around.
_READ_DELTA = text("""
SELECT s.horizon, s.revision, s.now, n.id, n.node_id, n.status, n.node_role, n.node_type, n.labels,
       CAST(n.capabilities AS text) AS capabilities, n.removed_at,
       CAST(h.metrics AS text) AS metrics
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
    column("capabilities", Text),  # as text, so that a document that is not valid harms no other
    NODE.removed_at,
    column("metrics", Text),
)

_XID_MODULUS = 2**32


async def read_delta(session: AsyncSession, horizon: int | None) -> NodeDelta:
    """Return what changed since the read that returned this horizon; every node if it is None."""
    since = None if horizon is None else str(horizon % _XID_MODULUS)
    result = await session.execute(_READ_DELTA, {"horizon": since})
    return await take_turns(_make_delta(result))


def _make_delta(result: Result[Any]) -> Steps[NodeDelta]:
    rows = yield from collect(result)
    changed: list[Candidate] = []
    removed: list[UUID] = []
    unreadable: list[tuple[UUID, Exception]] = []
    for row in rows:
        if row.id is None:
            continue  # nothing has changed
        if row.removed_at is not None:
            removed.append(row.id)
            continue
        try:
            changed.append(_make_candidate(row))
        except Exception as error:  # noqa: BLE001  # one bad row must not hide the others
            removed.append(row.id)
            unreadable.append((row.id, error))
        yield
    return NodeDelta(rows[0].horizon, rows[0].revision, rows[0].now, changed, removed, unreadable)


def _make_candidate(row: Row[Any]) -> Candidate:
    return make_candidate(
        row.id,
        row.node_id,
        row.status,
        row.node_role,
        row.node_type,
        labels=row.labels,
        capabilities=row.capabilities,
        metrics=None if row.metrics is None else orjson.loads(row.metrics),
    )
