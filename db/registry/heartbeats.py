"""Recording heartbeats: many in one statement, each with its own outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import NodeNotFound, RegistryError, StaleBoot, Unavailable
from db.registry import status_changes
from db.registry.flapping import damp_flapping
from db.registry.liveness_rules import LivenessRules
from db.registry.status_changes import Transition
from db.registry.sweep import OVERDUE_AT


@dataclass(frozen=True, slots=True)
class HeartbeatReport:
    """One heartbeat as an agent sends it; `metrics` is None where it measured nothing."""

    node_id: str
    boot_id: str
    sequence: int
    degraded: bool = False
    metrics: Mapping[str, Any] | None = None
    actor: str = "anonymous"


@dataclass(frozen=True, slots=True)
class HeartbeatAck:
    """The node after a heartbeat was heard, or was too old to say anything new."""

    node_id: str
    status: NodeStatus
    received_at: datetime
    interval_seconds: float


# Rows are locked in the order of their ids, so that two batches never wait for one another in a
# ring. What a heartbeat changes of the status is decided here and made by changes.apply; where $9
# is false, nothing is written of those that change it. LIMIT tells that registry_state has one row:
# until its first ANALYZE PostgreSQL would plan for hundreds. The parameters are numbered, as
# asyncpg takes them, in the order of `_make_parameters`: most batches go to the driver itself.
_RECORD = f"""
WITH report AS (
    SELECT * FROM unnest(CAST($1 AS text[]), CAST($2 AS text[]),
                         CAST($3 AS bigint[]), CAST($4 AS boolean[]),
                         CAST($5 AS text[]), CAST($6 AS double precision[]))
        WITH ORDINALITY
        AS r (node_id, boot_id, sequence, degraded, metrics, interval_seconds, ordinal)
), held AS (
    SELECT n.id, n.status, n.status_reason, n.last_heartbeat, n.boot_id = r.boot_id AS same_boot,
           n.steady_since, n.heartbeat_interval_seconds AS promised_seconds,
           r.ordinal, r.sequence, r.degraded, r.metrics, r.interval_seconds,
           greatest(registry_now(), n.heard_at) AS heard_at,
           n.boot_id = r.boot_id AND r.sequence > coalesce(n.last_sequence, -1) AS newer,
           n.status = 'degraded' AND n.status_reason = 'flapping' AS flapping,
           {OVERDUE_AT.replace(":grace", "$7")} <= registry_now() AS late
    FROM report r
    JOIN nodes n
      ON n.node_id = r.node_id AND n.removed_at IS NULL AND n.boot_id IS NOT NULL
    CROSS JOIN (SELECT lease_floor FROM registry_state LIMIT 1) s
    ORDER BY n.id
    FOR UPDATE OF n
), judged AS (
    SELECT *, newer AND NOT unsteady
              AND (status <> next OR next = 'degraded' AND status_reason <> 'self_reported')
              AS changes
    FROM (
        SELECT *, CASE WHEN status = 'maintenance' THEN status
                       WHEN degraded OR unsteady THEN 'degraded'
                       ELSE 'online' END AS next
        FROM (
            SELECT *, flapping
                      AND (late OR steady_since > heard_at - make_interval(secs => $8))
                      AS unsteady
            FROM held
        ) held
    ) held
), logged AS (
    INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
    SELECT heard_at, id, next, CAST(metrics AS jsonb) FROM judged
    WHERE newer AND (NOT changes OR $9)
    RETURNING id AS heartbeat_id, node_id, timestamp
), renewed AS (
    UPDATE nodes n
    SET last_heartbeat = l.timestamp, heard_at = l.timestamp, last_sequence = h.sequence,
        last_heartbeat_id = l.heartbeat_id, reported_degraded = h.degraded,
        heartbeat_interval_seconds = h.interval_seconds,
        steady_since = CASE WHEN h.flapping AND h.late THEN h.heard_at ELSE h.steady_since END
    FROM judged h JOIN logged l ON l.node_id = h.id
    WHERE n.id = h.id
)
SELECT ordinal, id, same_boot, status, next, changes,
       CASE WHEN newer THEN heard_at ELSE last_heartbeat END AS received_at,
       CASE WHEN newer THEN interval_seconds ELSE promised_seconds END AS interval_seconds
FROM judged
ORDER BY ordinal
"""  # noqa: S608  # nothing in it comes from outside


async def record_batch(
    database: Database, reports: Sequence[HeartbeatReport], rules: LivenessRules
) -> list[HeartbeatAck | RegistryError]:
    """The outcome of each report, in the order given, as `record` has it, once it is committed.

    Those that change no status, nearly all, are written in a single round trip, and stand though
    the others should be Unavailable. Raises Unavailable when none could be written.
    """
    first, *later = _split_into_rounds(reports) or [[]]
    outcomes: list[HeartbeatAck | RegistryError] = [
        NodeNotFound(report.node_id) for report in reports
    ]
    left = list(chain(*later))
    async with database.open_connection() as connection:
        terms = _make_parameters([reports[i] for i in first], rules, whole=False)
        rows = await connection.fetch(_RECORD, *terms)
    for row in rows:
        i = first[row["ordinal"] - 1]
        if row["changes"]:
            left.append(i)
        else:
            outcomes[i] = _make_outcome(reports[i], row, row["status"])
    if left:
        left.sort()
        recorded: Sequence[HeartbeatAck | RegistryError]
        try:
            async with database.write() as session:
                recorded = await record_in_transaction(session, [reports[i] for i in left], rules)
        except Unavailable as away:
            recorded = [away] * len(left)
        for i, outcome in zip(left, recorded, strict=True):
            outcomes[i] = outcome
    return outcomes


async def record_in_transaction(
    session: AsyncSession, reports: Sequence[HeartbeatReport], rules: LivenessRules
) -> list[HeartbeatAck | RegistryError]:
    """The outcome of each report, in the order given; none fails the others.

    A report that is not newer than the node's last one changes nothing and tells how the node
    stands. The log gets one row for each that is accepted.
    """
    outcomes: list[HeartbeatAck | RegistryError] = [
        NodeNotFound(report.node_id) for report in reports
    ]
    unknown: set[str] = set()
    for turn in _split_into_rounds(reports):
        # A turn locks no node that the first one did not: the log's counter may be locked by now.
        asked = [i for i in turn if reports[i].node_id not in unknown]
        outcomes_of_turn = await _record_round(session, [reports[i] for i in asked], rules)
        for i, outcome in zip(asked, outcomes_of_turn, strict=True):
            outcomes[i] = outcome
            if isinstance(outcome, NodeNotFound):
                unknown.add(reports[i].node_id)
    return outcomes


def _split_into_rounds(reports: Sequence[HeartbeatReport]) -> list[list[int]]:
    """The indexes of the reports, in turns in which no node occurs twice."""
    seen: dict[str, int] = {}
    turns: list[list[int]] = []
    for i, report in enumerate(reports):
        turn = seen.get(report.node_id, 0)
        seen[report.node_id] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(i)
    return turns


async def _record_round(
    session: AsyncSession, reports: Sequence[HeartbeatReport], rules: LivenessRules
) -> list[HeartbeatAck | RegistryError]:
    connection = await session.connection()
    result = await connection.exec_driver_sql(_RECORD, _make_parameters(reports, rules, whole=True))
    rows = result.mappings().all()
    judged = [(reports[row["ordinal"] - 1], row) for row in rows]
    transitions = [
        Transition(
            row["id"],
            NodeStatus(row["status"]),
            NodeStatus(row["next"]),
            StatusReason.SELF_REPORTED if report.degraded else StatusReason.HEARTBEAT,
            report.actor,
        )
        for report, row in judged
        if row["changes"]
    ]
    if transitions:
        transitions = await damp_flapping(session, transitions, rules)
        await status_changes.apply_transitions(session, transitions)
    status = {t.node: t.status for t in transitions}
    outcomes: list[HeartbeatAck | RegistryError] = [
        NodeNotFound(report.node_id) for report in reports
    ]
    for report, row in judged:
        outcomes[row["ordinal"] - 1] = _make_outcome(
            report, row, status.get(row["id"], row["status"])
        )
    return outcomes


def _make_parameters(
    reports: Sequence[HeartbeatReport], rules: LivenessRules, *, whole: bool
) -> tuple[object, ...]:
    return (
        [report.node_id for report in reports],
        [report.boot_id for report in reports],
        [report.sequence for report in reports],
        [report.degraded for report in reports],
        [orjson.dumps(report.metrics or {}).decode() for report in reports],
        [rules.draw_interval() for _ in reports],
        rules.grace,
        rules.flap_steady,
        whole,
    )


def _make_outcome(
    report: HeartbeatReport, row: Mapping[Any, Any], status: str
) -> HeartbeatAck | RegistryError:
    if not row["same_boot"]:
        return StaleBoot(report.node_id)
    return HeartbeatAck(
        report.node_id, NodeStatus(status), row["received_at"], row["interval_seconds"]
    )
