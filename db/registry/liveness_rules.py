"""The rules of liveness, without I/O; all times are in seconds.

`db.registry.sweep` applies them.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from db.core.enums import RegistryMode

TTL_INTERVALS = 3
"""The intervals, in addition to the grace, after which the lease of a silent node ends."""

JITTER = 0.1
_RETURN_FRACTION = 0.5


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """The configuration of liveness, and the state of the fleet that it is applied to.

    A node is overdue (DEGRADED) one interval and the grace after it was last heard; its lease ends
    (OFFLINE) after three intervals and the grace. The interval is the one that the last reply to
    its agent set. More than `flap_transitions` changes within `flap_window` keep a node DEGRADED
    until it was steady, or silent, for `flap_steady`; after that, its first fall within the window
    makes it flapping again. `live_nodes`, `stretch` and `jitter` change at run time.
    """

    min_interval: float = 10.0
    grace: float = 5.0
    target_rate: float = 1000.0
    process_timeout: float = 6.0
    """After which a process of the registry without a heartbeat counts as silent."""
    protect_fraction: float = 0.5
    protect_min_nodes: int = 10
    protect_max: float = 600.0
    flap_transitions: int = 3
    flap_window: float = 3600.0
    flap_steady: float = 300.0
    remove_offline_after: Mapping[str, float] = field(default_factory=dict)
    """By label, the time after which an OFFLINE node with that label is removed."""

    live_nodes: int = 0
    stretch: float = 1.0
    jitter: float = JITTER

    @property
    def interval(self) -> float:
        """The heartbeat interval at which the whole fleet does not exceed the target rate."""
        return max(self.min_interval, self.live_nodes / self.target_rate) * self.stretch

    def draw_interval(self) -> float:
        """Return the interval for one reply: at least `interval`, spread at random by `jitter`."""
        return self.interval * random.uniform(1, 1 + self.jitter)  # noqa: S311  # not a secret

    def has_had_outage(self, now: datetime, heartbeats: "ProcessHeartbeats") -> bool:
        """Return whether the registry may have missed heartbeats since its processes last ran.

        That is so after no process ran for longer than `process_timeout` (a restart, an outage of
        the database, a jump of its clock), and after one of several processes fell silent (it was
        suspended or died, and its agents need time to find the others). The second case counts at
        most once in two TTLs: otherwise a process that keeps dying, or is always slow, would keep
        every node from being marked OFFLINE.
        """
        patience = timedelta(seconds=self.process_timeout)
        if (
            heartbeats.newest is None
            or heartbeats.oldest is None
            or abs(now - heartbeats.newest) > patience
        ):
            return True
        ttl = timedelta(seconds=TTL_INTERVALS * self.interval + self.grace)
        return now - heartbeats.oldest > patience and now - heartbeats.lease_floor > 2 * ttl

    def decide_mode(self, state: "FleetState", now: datetime) -> tuple[RegistryMode, str | None]:
        """Return the next mode and its reason: PROTECTED while too many live nodes are silent.

        PROTECTED lasts `protect_max` at most. In NORMAL mode `silent_nodes` counts only nodes that
        fell silent since the mode began, so that those that PROTECTED mode gave up on do not start
        it again. In PROTECTED mode it counts every node without heartbeats, whatever its lease, so
        that a restart, which renews leases, does not end the mode.
        """
        live, silent = state.live_nodes, state.silent_nodes
        is_large_enough = live >= self.protect_min_nodes
        if state.mode is RegistryMode.NORMAL:
            if is_large_enough and silent > self.protect_fraction * live:
                return RegistryMode.PROTECTED, f"{silent} of {live} live nodes fell silent at once"
            return RegistryMode.NORMAL, None
        have_returned = silent <= self.protect_fraction * _RETURN_FRACTION * live
        is_over = now - state.since >= timedelta(seconds=self.protect_max)
        if have_returned or is_over or not is_large_enough:
            return RegistryMode.NORMAL, None
        return RegistryMode.PROTECTED, state.reason


@dataclass(frozen=True, slots=True)
class ProcessHeartbeats:
    """The newest and the oldest heartbeat of the registry's processes, and the lease floor.

    The first two are None if there is no process.
    """

    newest: datetime | None
    oldest: datetime | None
    lease_floor: datetime


@dataclass(frozen=True, slots=True)
class FleetState:
    """The mode of the registry and the counts of nodes at one moment."""

    mode: RegistryMode
    reason: str | None
    since: datetime
    live_nodes: int
    silent_nodes: int
