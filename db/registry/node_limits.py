"""The limits of what one node may have written, whoever sends it: pace, changes, bytes a day.

The row of the node counts its use, so that they hold exactly over all processes of the registry.
Rates follow GCRA, as in `graph.auth.rate_limiter`: `..._paid_until` is the time until which what
was accepted uses up the rate.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

from db.core.errors import RateLimited
from db.core.tables import Node
from db.registry.liveness_rules import JITTER


class BudgetExceeded(RateLimited):
    """The node has used up its bytes of the day."""


BURST_INTERVALS = 3
"""As many heartbeats are accepted at once as this many intervals allow: those of one lease."""

MAX_BURST_INTERVALS = BURST_INTERVALS * (1 + JITTER)
"""So that they are no fewer, whatever intervals were drawn."""

BURST_CHANGES = 30
CHANGE_BYTES = 2048
"""What the audit entry of a registration or of one of its profiles takes, its content apart."""

METRICS_SHARE, CHANGES_SHARE = 5 / 8, 3 / 4
"""Up to which part of the bytes of the day metrics are stored and changes accepted.

An eighth is kept for registrations. The last quarter is for what is never refused for its size:
leases and restarts, each at its pace, and audit entries of rejections.
"""

HEARTBEAT_ROW_BYTES = 200
"""What a heartbeat without metrics takes in heartbeat_log, its index entries included."""


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """The limits of each node. A node beyond `bytes_per_day` keeps its lease, without metrics."""

    heartbeats_per_interval: float = math.inf
    """How many times faster than the interval of the last reply heartbeats may arrive."""
    changes_per_minute: float = math.inf
    """Registrations that change something, restarts of the agent included."""
    bytes_per_day: int = 2**62
    """What the node makes the database grow by, per day (UTC)."""

    @property
    def max_heartbeats_at_once(self) -> int:
        """The most heartbeats of a node that a batch may hold, those sent again included."""
        at_once = (1 + JITTER) * MAX_BURST_INTERVALS * self.heartbeats_per_interval
        return math.ceil(min(at_once, 1e6))

    @property
    def metrics_bytes_per_day(self) -> int:
        return int(self.bytes_per_day * METRICS_SHARE)

    def charge_change(
        self, node: Node, now: datetime, size: int, *, is_restart: bool
    ) -> dict[str, Any]:
        """Return the columns of the locked node that count a change of `size` bytes.

        One that is no more than a restart of the agent may exceed the bytes of the day, or the node
        could not get its lease back.

        Raises: RateLimited: the node changes too often, or has used up its bytes of the day.
        """
        written = count_written_bytes(node, now)
        if written + size > self.bytes_per_day * CHANGES_SHARE and not is_restart:
            raise BudgetExceeded(
                f"node {node.node_id!r} has used up its bytes of the day",
                retryAfterSeconds=_count_seconds_until_midnight(now),
            )
        step = timedelta(minutes=1 / self.changes_per_minute)
        latest = now + BURST_CHANGES * step
        paid_until = max(node.changes_paid_until or now, now)
        if paid_until > latest:  # the clock was set back, or the limit raised
            paid_until = now
        paid_until += step
        if paid_until > latest:
            raise RateLimited(
                f"node {node.node_id!r} changes too often",
                retryAfterSeconds=round((paid_until - latest).total_seconds(), 3),
            )
        return {
            "changes_paid_until": paid_until,
            "written_on": now.astimezone(UTC).date(),
            "written_bytes": written + size,
        }


UNLIMITED = NodeLimits()


def count_written_bytes(node: Node, now: datetime) -> int:
    """Return the bytes that the node has had written on the day (UTC) of `now`."""
    return node.written_bytes if node.written_on == now.astimezone(UTC).date() else 0


def _count_seconds_until_midnight(now: datetime) -> float:
    tomorrow = now.astimezone(UTC).date() + timedelta(days=1)
    return round((datetime.combine(tomorrow, time(), UTC) - now).total_seconds(), 3)
