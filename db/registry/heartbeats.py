"""The writing of heartbeats: many in one statement, each with its own outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, TypeAlias

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import NodeNotFound, RateLimited, RegistryError, StaleBoot, Unavailable
from db.core.identity import ANONYMOUS_ACTOR
from db.registry import status_changes
from db.registry.flapping import damp_flapping
from db.registry.liveness_rules import LivenessRules
from db.registry.node_limits import (
    HEARTBEAT_ROW_BYTES,
    MAX_BURST_INTERVALS,
    UNLIMITED,
    NodeLimits,
)
from db.registry.status_changes import Transition
from db.registry.sweep import OVERDUE_AT


@dataclass(frozen=True, slots=True)
class HeartbeatReport:
    """The checked content of one heartbeat; `metrics` is None if the agent measured nothing."""

    node_id: str
    boot_id: str
    sequence: int
    degraded: bool = False
    metrics: Mapping[str, Any] | None = None
    actor: str = ANONYMOUS_ACTOR


@dataclass(frozen=True, slots=True)
class HeartbeatAck:
    """The node after a heartbeat that was written, or that was not newer than the last one."""

    node_id: str
    status: NodeStatus
    received_at: datetime
    """When the registry received the node's last heartbeat."""
    interval_seconds: float
    """The interval until the next heartbeat."""
    metrics_dropped: bool = False
    """Whether the node had used up its bytes of the day, so that its metrics were not stored."""


HeartbeatOutcome: TypeAlias = HeartbeatAck | RegistryError


# Rows are locked in the order of their ids, so that two batches cannot deadlock. LIMIT tells the
# planner that registry_state has one row: until its first ANALYZE it would plan for hundreds. The
# statements only decide on statuses; `status_changes.apply_transitions` sets them. The account
# of GCRA is capped by its last use, because it may have grown by a longer interval, and starts
# again while the clock is behind that use. The parameters are numbered as asyncpg takes them, in
# the order of `_make_parameters`.
_JUDGE = f"""
WITH report AS (
    SELECT * FROM unnest(CAST($1 AS text[]), CAST($2 AS text[]),
                         CAST($3 AS bigint[]), CAST($4 AS boolean[]),
                         CAST($5 AS text[]), CAST($6 AS double precision[]))
        WITH ORDINALITY
        AS r (node_id, boot_id, sequence, degraded, metrics, interval_seconds, ordinal)
), locked AS (
    SELECT n.id, n.status, n.status_reason, n.last_heartbeat, n.boot_id = r.boot_id AS same_boot,
           n.steady_since, n.heartbeat_interval_seconds AS current_interval_seconds,
           n.heartbeats_paid_until, n.written_on, n.written_bytes,
           r.ordinal, r.sequence, r.degraded, CAST(r.metrics AS jsonb) AS metrics,
           r.interval_seconds,
           greatest(registry_now(), n.heard_at) AS heard_at,
           n.boot_id = r.boot_id AND r.sequence > coalesce(n.last_sequence, -1) AS is_newer,
           n.status = 'degraded' AND n.status_reason = 'flapping' AS is_flapping,
           {OVERDUE_AT.replace(":grace", "$7")} <= registry_now() AS is_late
    FROM report r
    JOIN nodes n
      ON n.node_id = r.node_id AND n.removed_at IS NULL AND n.boot_id IS NOT NULL
    CROSS JOIN (SELECT lease_floor FROM registry_state LIMIT 1) s
    ORDER BY n.id
    FOR UPDATE OF n
), measured AS (
    SELECT *, is_newer AND paid_until <= latest_paid_until AS is_accepted,
           is_newer AND paid_until > latest_paid_until AS is_too_early,
           metrics <> '{{}}' AND written + pg_column_size(metrics) > $10 AS is_over_budget
    FROM (
        SELECT *, clock + burst AS latest_paid_until,
               CASE WHEN last_heartbeat > clock THEN clock
                    ELSE greatest(
                        least(coalesce(heartbeats_paid_until, '-infinity'), last_heartbeat + burst),
                        clock
                    )
               END + step AS paid_until,
               CASE WHEN written_on = today THEN written_bytes ELSE 0 END + {HEARTBEAT_ROW_BYTES}
               AS written
        FROM (
            SELECT *, make_interval(secs => current_interval_seconds / $9) AS step,
                   make_interval(secs => current_interval_seconds * $11) AS burst,
                   CAST(clock AT TIME ZONE 'UTC' AS date) AS today
            FROM (SELECT *, registry_now() AS clock FROM locked) locked
        ) locked
    ) locked
), judged AS (
    SELECT *, is_accepted AND NOT is_unsteady
              AND (status <> next_status
                   OR next_status = 'degraded' AND status_reason <> 'self_reported')
              AS changes_status
    FROM (
        SELECT *, CASE WHEN status = 'maintenance' THEN status
                       WHEN degraded OR is_unsteady THEN 'degraded'
                       ELSE 'online' END AS next_status
        FROM (
            SELECT *, is_flapping
                      AND (is_late OR steady_since > heard_at - make_interval(secs => $8))
                      AS is_unsteady
            FROM measured
        ) measured
    ) measured
)"""  # noqa: S608  # nothing in it comes from outside
_LOG = """logged AS (
    INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
    SELECT heard_at, id, next_status, CASE WHEN is_over_budget THEN '{}' ELSE metrics END
    FROM judged
    WHERE is_accepted"""
_RENEW_LEASES = """
    RETURNING id AS heartbeat_id, node_id, timestamp
), renewed AS (
    UPDATE nodes n
    SET last_heartbeat = l.timestamp, heard_at = l.timestamp, last_sequence = j.sequence,
        last_heartbeat_id = l.heartbeat_id, reported_degraded = j.degraded,
        heartbeat_interval_seconds = j.interval_seconds,
        steady_since = CASE WHEN j.is_flapping AND j.is_late THEN j.heard_at
                            ELSE j.steady_since END,
        heartbeats_paid_until = j.paid_until, written_on = j.today,
        written_bytes = j.written
                        + CASE WHEN j.is_over_budget THEN 0 ELSE pg_column_size(j.metrics) END
    FROM judged j JOIN logged l ON l.node_id = j.id
    WHERE n.id = j.id
)
SELECT ordinal, id, same_boot, status, next_status, changes_status, is_too_early,
       is_accepted AND is_over_budget AS metrics_dropped,
       CASE WHEN is_accepted THEN heard_at ELSE last_heartbeat END AS received_at,
       CASE WHEN is_accepted THEN interval_seconds ELSE current_interval_seconds END
       AS interval_seconds,
       extract(epoch FROM paid_until - latest_paid_until) AS retry_after_seconds
FROM judged
ORDER BY ordinal
"""

# Writes every newer heartbeat. The caller then changes the statuses that it finds in the rows.
_RECORD_ALL = f"{_JUDGE}, {_LOG}{_RENEW_LEASES}"

# Writes those that change no status, so that it can stand alone, without a transaction.
_RECORD_UNCHANGED = f"{_JUDGE}, {_LOG} AND NOT changes_status{_RENEW_LEASES}"


async def record_batch(
    database: Database,
    reports: Sequence[HeartbeatReport],
    rules: LivenessRules,
    limits: NodeLimits = UNLIMITED,
) -> list[HeartbeatOutcome]:
    """Write heartbeats and return the outcome of each, in the order given, after the commit.

    One that arrives earlier than the limits allow is RateLimited and changes nothing.
    Those that change no status, nearly all, are written in one round trip, and stay written if the
    others turn out Unavailable.

    Raises: Unavailable: none could be written.
    """
    outcomes: list[HeartbeatOutcome | None] = [None] * len(reports)
    first, *later = _split_into_rounds(reports) or [[]]
    # Each round is a statement: one node must not hold up the heartbeats of all.
    max_later = min(limits.max_heartbeats_at_once, len(later))
    remaining = list(chain(*later[:max_later]))
    for i in chain(*later[max_later:]):
        wait_seconds = rules.interval / limits.heartbeats_per_interval
        outcomes[i] = _make_rate_limited(reports[i], wait_seconds)
    parameters = _make_parameters([reports[i] for i in first], rules, limits)
    async with database.open_connection() as connection:
        rows = await connection.fetch(_RECORD_UNCHANGED, *parameters)
    for row in rows:
        i = first[row["ordinal"] - 1]
        if row["changes_status"]:
            remaining.append(i)
        else:
            outcomes[i] = _make_outcome(reports[i], row, row["status"])
    if remaining:
        remaining.sort()
        recorded: Sequence[HeartbeatOutcome]
        try:
            async with database.write() as session:
                recorded = await record_in_transaction(
                    session, [reports[i] for i in remaining], rules, limits
                )
        except Unavailable as error:
            recorded = [error] * len(remaining)
        for i, outcome in zip(remaining, recorded, strict=True):
            outcomes[i] = outcome
    return _fill_in_not_found(reports, outcomes)


async def record_in_transaction(
    session: AsyncSession,
    reports: Sequence[HeartbeatReport],
    rules: LivenessRules,
    limits: NodeLimits = UNLIMITED,
) -> list[HeartbeatOutcome]:
    """Write heartbeats, change statuses, and return the outcome of each, in the order given.

    One that fails does not fail the others. A report that is not newer than the node's last one
    changes nothing and is answered with the node's current state. Each report that is accepted
    adds a row to the heartbeat log.
    """
    outcomes: list[HeartbeatOutcome | None] = [None] * len(reports)
    unknown: set[str] = set()
    limited: dict[str, RateLimited] = {}  # time stands still within the transaction
    for indexes_of_round in _split_into_rounds(reports):
        # Later rounds lock only nodes that the first one locked: the change log's counter may be
        # locked by now, and it is always the last to be locked.
        for i in indexes_of_round:
            outcomes[i] = limited.get(reports[i].node_id)
        indexes = [
            i for i in indexes_of_round if outcomes[i] is None and reports[i].node_id not in unknown
        ]
        recorded = await _record_round(session, [reports[i] for i in indexes], rules, limits)
        for i, outcome in zip(indexes, recorded, strict=True):
            outcomes[i] = outcome
            if outcome is None:
                unknown.add(reports[i].node_id)
            elif isinstance(outcome, RateLimited):
                limited[reports[i].node_id] = outcome
    return _fill_in_not_found(reports, outcomes)


def _split_into_rounds(reports: Sequence[HeartbeatReport]) -> list[list[int]]:
    """Return the indexes of the reports in rounds, none of which has two reports of one node."""
    counts: dict[str, int] = {}
    rounds: list[list[int]] = []
    for i, report in enumerate(reports):
        number = counts.get(report.node_id, 0)
        counts[report.node_id] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(i)
    return rounds


async def _record_round(
    session: AsyncSession,
    reports: Sequence[HeartbeatReport],
    rules: LivenessRules,
    limits: NodeLimits,
) -> list[HeartbeatOutcome | None]:
    """Write reports of different nodes; the outcome is None for a node that is not registered."""
    connection = await session.connection()
    result = await connection.exec_driver_sql(_RECORD_ALL, _make_parameters(reports, rules, limits))
    rows = result.mappings().all()
    statuses: dict[int, str] = {row["ordinal"]: row["status"] for row in rows}
    changing = [row for row in rows if row["changes_status"]]
    if changing:
        transitions = await damp_flapping(
            session, [_make_transition(reports[row["ordinal"] - 1], row) for row in changing], rules
        )
        await status_changes.apply_transitions(session, transitions)
        for row, transition in zip(changing, transitions, strict=True):
            statuses[row["ordinal"]] = transition.status
    outcomes: list[HeartbeatOutcome | None] = [None] * len(reports)
    for row in rows:
        i = row["ordinal"] - 1
        outcomes[i] = _make_outcome(reports[i], row, statuses[row["ordinal"]])
    return outcomes


def _make_parameters(
    reports: Sequence[HeartbeatReport], rules: LivenessRules, limits: NodeLimits
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
        limits.heartbeats_per_interval,
        limits.metrics_bytes_per_day,
        MAX_BURST_INTERVALS,
    )


def _make_transition(report: HeartbeatReport, row: Mapping[Any, Any]) -> Transition:
    reason = StatusReason.SELF_REPORTED if report.degraded else StatusReason.HEARTBEAT
    status, next_status = NodeStatus(row["status"]), NodeStatus(row["next_status"])
    return Transition(row["id"], status, next_status, reason, report.actor)


def _make_outcome(report: HeartbeatReport, row: Mapping[Any, Any], status: str) -> HeartbeatOutcome:
    if not row["same_boot"]:
        return StaleBoot(report.node_id)
    if row["is_too_early"]:
        return _make_rate_limited(report, float(row["retry_after_seconds"]))
    return HeartbeatAck(
        report.node_id,
        NodeStatus(status),
        row["received_at"],
        row["interval_seconds"],
        row["metrics_dropped"],
    )


def _make_rate_limited(report: HeartbeatReport, retry_after_seconds: float) -> RateLimited:
    return RateLimited(
        f"too many heartbeats of node {report.node_id!r}",
        retryAfterSeconds=round(retry_after_seconds, 3),
    )


def _fill_in_not_found(
    reports: Sequence[HeartbeatReport], outcomes: Sequence[HeartbeatOutcome | None]
) -> list[HeartbeatOutcome]:
    return [
        NodeNotFound(report.node_id) if outcome is None else outcome
        for report, outcome in zip(reports, outcomes, strict=True)
    ]
