"""The sweep: one transaction that applies the liveness rules to all nodes, by the database's clock.

Time stands still within a sweep: even if its process is suspended half-way, it marks nodes as of
the moment at which it began.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import is_transient
from db.core.enums import NodeStatus, RegistryMode, StatusReason
from db.registry import process_heartbeats, status_changes
from db.registry.liveness_rules import TTL_INTERVALS, FleetState, LivenessRules
from db.registry.status_changes import Transition

SWEEP_LIMIT = 1000

# As a subquery it is evaluated once for a statement, not for each row.
_NOW = "(SELECT registry_now())"

# Expressions on a row `n` of `nodes` and the row `s` of `registry_state`.
_HEARD_AT = "greatest(n.heard_at, s.lease_floor)"
_OVERDUE_AFTER = "make_interval(secs => n.heartbeat_interval_seconds + :grace)"
OVERDUE_AT = f"{_HEARD_AT} + {_OVERDUE_AFTER}"
_TTL_SECONDS = f"{TTL_INTERVALS} * n.heartbeat_interval_seconds + :grace"
LEASE_ENDS_AT = f"""{_HEARD_AT} + make_interval(secs =>
    CASE WHEN n.status_reason = 'flapping' THEN greatest({_TTL_SECONDS}, :flap_steady)
         ELSE {_TTL_SECONDS} END)
"""

STATUS_BY_HEARTBEATS = f"""
CASE WHEN n.heard_at IS NULL
       OR {LEASE_ENDS_AT} <= {_NOW} AND s.mode <> 'protected' THEN 'offline'
     WHEN n.reported_degraded OR {OVERDUE_AT} <= {_NOW} THEN 'degraded'
     ELSE 'online' END
"""
"""The status of a node by its heartbeats, without maintenance; PROTECTED holds OFFLINE back."""

_IS_LIVE = "n.status IN ('online', 'degraded')"
_IS_DUE = f"""
(n.status = 'online' AND {OVERDUE_AT} <= {_NOW}
 OR n.status = 'degraded' AND {LEASE_ENDS_AT} <= {_NOW} AND s.mode <> 'protected'
 OR n.status = 'maintenance' AND n.maintenance_until <= {_NOW})
"""

_CENSUS = text(f"""
SELECT registry_now() AS now, s.mode, s.mode_reason, s.mode_since, c.*
FROM registry_state s, LATERAL (
    SELECT count(*) FILTER (WHERE {_IS_LIVE}) AS live,
           count(*) FILTER (
               WHERE {_IS_LIVE} AND CASE s.mode
                   WHEN 'protected' THEN n.heard_at + {_OVERDUE_AFTER} <= {_NOW}
                   ELSE {OVERDUE_AT} <= {_NOW} AND {OVERDUE_AT} > s.mode_since END
           ) AS silent,
           count(*) FILTER (WHERE {_IS_DUE}) AS due
    FROM nodes n
    WHERE n.removed_at IS NULL AND n.status <> 'offline'
) c
""")  # noqa: S608  # nothing in it comes from outside

# A sweep waits for no row, so it may lock rows in any order and needs no sort.
_SELECT_DUE = text(f"""
SELECT n.id, n.status, {STATUS_BY_HEARTBEATS} AS next
FROM nodes n, registry_state s
WHERE n.removed_at IS NULL AND {_IS_DUE}
LIMIT {SWEEP_LIMIT}
FOR UPDATE OF n SKIP LOCKED
""")  # noqa: S608  # as above

_SET_MODE = text("""
UPDATE registry_state SET mode = :mode, mode_reason = :reason, mode_since = registry_now()
WHERE mode <> :mode
RETURNING mode
""")

_SELECT_EXPIRED = text(f"""
SELECT n.id
FROM nodes n, registry_state s
WHERE n.removed_at IS NULL AND n.status = 'offline' AND s.mode <> 'protected'
  AND {LEASE_ENDS_AT} <= {_NOW} AND n.status_since <= (
    SELECT max(registry_now() - make_interval(secs => r.seconds))
    FROM unnest(CAST(:labels AS text[]), CAST(:seconds AS double precision[])) AS r (label, seconds)
    WHERE r.label = ANY (n.labels)
)
LIMIT {SWEEP_LIMIT}
FOR UPDATE OF n SKIP LOCKED
""")  # noqa: S608  # as above

_REMOVE = text("""
UPDATE nodes SET removed_at = registry_now() WHERE id = ANY(CAST(:nodes AS uuid[]))
""")


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The findings and changes of a sweep."""

    changed_nodes: int
    removed_nodes: int
    live_nodes: int
    mode: RegistryMode
    mode_changed: bool
    mode_reason: str | None
    outage_since: datetime | None
    has_more: bool
    """Whether a limit was reached, so that another sweep should follow at once."""
    failures: Sequence[tuple[UUID, Exception]] = ()
    """The nodes that could not be changed, each with the reason."""


async def sweep(
    session: AsyncSession, process: UUID, rules: LivenessRules, *, one_by_one: bool = False
) -> SweepResult:
    """Record the process heartbeat, set the mode, mark nodes that are due, remove expired ones.

    A sweep marks and removes at most 1,000 nodes each. Several processes may sweep at once: each
    row is locked by one sweep, which waits for no row and blocks heartbeats only while it writes.

    A node that cannot be changed fails the whole sweep, except `one_by_one`: then each change has a
    savepoint of its own.
    """
    outage_since = await process_heartbeats.record_process_heartbeat(session, process, rules)
    row = (await session.execute(_CENSUS, _make_parameters(rules))).one()
    previous_mode = RegistryMode(row.mode)
    fleet = FleetState(previous_mode, row.mode_reason, row.mode_since, row.live, row.silent)
    mode, reason = rules.decide_mode(fleet, row.now)
    mode_changed = mode is not previous_mode and (
        await session.scalar(_SET_MODE, {"mode": mode, "reason": reason}) is not None
    )
    due = await _find_due(session, rules) if row.due or mode_changed else []
    expired = await _find_expired(session, rules)
    failures: list[tuple[UUID, Exception]] = []
    if one_by_one:
        due = await _change_one_by_one(session, due, failures)
        expired = await _change_one_by_one(session, expired, failures)
    elif due or expired:
        await _change(session, [*due, *expired])
    return SweepResult(
        failures=failures,
        changed_nodes=len(due),
        removed_nodes=len(expired),
        live_nodes=row.live,
        mode=mode,
        mode_changed=mode_changed,
        mode_reason=reason,
        outage_since=outage_since,
        has_more=SWEEP_LIMIT in {len(due), len(expired)},
    )


async def _find_due(session: AsyncSession, rules: LivenessRules) -> list[Transition]:
    rows = await session.execute(_SELECT_DUE, _make_parameters(rules))
    return [
        Transition(
            row.id,
            NodeStatus(row.status),
            NodeStatus(row.next),
            StatusReason.MAINTENANCE_ENDED
            if row.status == NodeStatus.MAINTENANCE
            else StatusReason.MISSED_HEARTBEATS,
        )
        for row in rows
    ]


async def _change(session: AsyncSession, transitions: Sequence[Transition]) -> None:
    removed = [t.node for t in transitions if t.reason is StatusReason.DEREGISTERED]
    if removed:
        await session.execute(_REMOVE, {"nodes": removed})
    await status_changes.apply_transitions(session, transitions)


async def _change_one_by_one(
    session: AsyncSession,
    transitions: Sequence[Transition],
    failures: list[tuple[UUID, Exception]],
) -> list[Transition]:
    """Make the changes that can be made, and return them; add the others to `failures`."""
    changed = []
    for transition in transitions:
        try:
            async with session.begin_nested():
                await _change(session, [transition])
        except Exception as error:
            if is_transient(error):
                raise
            failures.append((transition.node, error))
        else:
            changed.append(transition)
    return changed


async def _find_expired(session: AsyncSession, rules: LivenessRules) -> list[Transition]:
    if not rules.remove_offline_after:
        return []
    seconds_by_label = rules.remove_offline_after
    rows = await session.scalars(
        _SELECT_EXPIRED,
        {
            "labels": list(seconds_by_label),
            "seconds": list(seconds_by_label.values()),
            **_make_parameters(rules),
        },
    )
    return [
        Transition(node, NodeStatus.OFFLINE, NodeStatus.OFFLINE, StatusReason.DEREGISTERED)
        for node in rows
    ]


def _make_parameters(rules: LivenessRules) -> dict[str, float]:
    return {"grace": rules.grace, "flap_steady": rules.flap_steady}


async def read_status_by_heartbeats(
    session: AsyncSession, node: UUID, rules: LivenessRules
) -> NodeStatus:
    """Return the status that a node has by its heartbeats, as when its maintenance ends."""
    result = await session.execute(
        text(f"SELECT {STATUS_BY_HEARTBEATS} FROM nodes n, registry_state s WHERE n.id = :node"),  # noqa: S608  # as above
        {"node": node, **_make_parameters(rules)},
    )
    return NodeStatus(result.scalar_one())
