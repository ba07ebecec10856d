"""The rules of liveness: pure, and all in seconds. `db.registry.sweep` applies them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from db.core.enums import RegistryMode

TTL_INTERVALS = 3
"""A lease ends so many intervals, and the grace, after its node was last heard."""

JITTER = 0.1
_RETURN_FRACTION = 0.5


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """What is configured, and how things stand: `live_nodes`, `stretch` and `jitter` change.

    A node is overdue one interval and the grace after it was last heard (DEGRADED); its lease ends
    after three intervals and the grace (OFFLINE). The interval is the one that its agent was
    promised. More than `flap_transitions` changes within `flap_window` hold a node at DEGRADED
    until it was steady, or silent, for `flap_steady`; let go, it is held again by its first fall
    within the window.
    """

    min_interval: float = 10.0
    grace: float = 5.0
    target_rate: float = 1000.0
    process_timeout: float = 6.0
    protect_fraction: float = 0.5
    protect_min_nodes: int = 10
    protect_max: float = 600.0
    flap_transitions: int = 3
    flap_window: float = 3600.0
    flap_steady: float = 300.0
    remove_offline_after: Mapping[str, float] = field(default_factory=dict)
    """By label: after how long a node that is OFFLINE is removed."""

    live_nodes: int = 0
    stretch: float = 1.0
    jitter: float = JITTER

    @property
    def interval(self) -> float:
        """The pace of the fleet: so slow that all together do not exceed the target rate."""
        return max(self.min_interval, self.live_nodes / self.target_rate) * self.stretch

    def draw_interval(self) -> float:
        """What one agent is promised: never less than the interval, and never in step."""
        return self.interval * random.uniform(1, 1 + self.jitter)  # noqa: S311  # no secret

    def has_had_outage(self, now: datetime, heartbeats: "ProcessHeartbeats") -> bool:
        """Whether heartbeats may have gone unheard since the registry was last seen at work.

        So it is when nobody was at work for longer than the patience (a restart, an outage of the
        database, a jump of its clock), and when one process of several fell silent (it was
        stopped, or it died: its agents need time to find the others). The latter is believed once
        in two TTLs, or one process that keeps dying, or is always slow, would let no node ever be
        found dead.
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
        """PROTECTED while more than the fraction of the live nodes is silent; bounded in time.

        `silent` counts, in NORMAL mode, only those that fell silent since the mode began: what
        PROTECTED mode gave up on must not bring it back. In PROTECTED mode it counts all that are
        truly silent: a fresh lease is no heartbeat, so a restart does not end the mode.
        """
        live, silent = state.live_nodes, state.silent_nodes
        enough = live >= self.protect_min_nodes
        if state.mode is RegistryMode.NORMAL:
            if enough and silent > self.protect_fraction * live:
                return RegistryMode.PROTECTED, f"{silent} of {live} live nodes fell silent at once"
            return RegistryMode.NORMAL, None
        returned = silent <= self.protect_fraction * _RETURN_FRACTION * live
        over = now - state.since >= timedelta(seconds=self.protect_max)
        if returned or over or not enough:
            return RegistryMode.NORMAL, None
        return RegistryMode.PROTECTED, state.reason


@dataclass(frozen=True, slots=True)
class ProcessHeartbeats:
    """When the processes of the registry were last seen at work; None where there is none."""

    newest: datetime | None
    oldest: datetime | None
    lease_floor: datetime


@dataclass(frozen=True, slots=True)
class FleetState:
    """The fleet and the registry at one moment."""

    mode: RegistryMode
    reason: str | None
    since: datetime
    live_nodes: int
    silent_nodes: int
