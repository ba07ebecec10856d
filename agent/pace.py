"""The times of heartbeats and retries: the registry's pace, and the back-off after failures."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BASE_SECONDS = 1.0
CAP_SECONDS = 60.0
# The longest time after which the clock notices that the machine slept or the pace changed.
SLICE_SECONDS = 1.0

# Unlike time.monotonic these advance while the machine sleeps: the first on Linux, the second on
# macOS.
_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Clock:
    """The agent's source of time and randomness, which tests replace."""

    now: Callable[[], float] = lambda: time.clock_gettime(_CLOCK_ID)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform

    async def wait(self, seconds: float) -> None:
        """Wait for so many seconds, which include the time that the machine sleeps."""
        due = self.now() + seconds
        await self.wait_until(lambda: due)

    async def wait_until(self, due: Callable[[], float]) -> None:
        """Wait until `now` reaches what `due` returns, which may change meanwhile."""
        while (left := due() - self.now()) > 0:
            await self.sleep(min(left, SLICE_SECONDS))


class Schedule:
    """The time of the next heartbeat: by the last reply, or earlier after a faster pace."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pace_seconds = 0.0
        self.interval_seconds = 0.0
        """The interval that the last reply set; 0 before the first reply."""
        self.due = clock.now()

    def set_interval(self, seconds: float) -> None:
        """Set the interval that a reply brought. It begins now."""
        self.interval_seconds = seconds
        self.due = self._clock.now() + seconds

    def apply_pace(self, seconds: float) -> None:
        """Bring the next heartbeat forward if the pace, in seconds per heartbeat, got faster.

        All agents receive the pace at the same moment, so each draws its own time within it. A
        slower pace changes nothing: the node's lease depends on the interval that its reply set.
        """
        faster, self._pace_seconds = seconds < self._pace_seconds, seconds
        now = self._clock.now()
        if faster and self.due - now > seconds:
            self.due = now + self._clock.uniform(0.0, seconds)

    async def wait(self) -> None:
        await self._clock.wait_until(lambda: self.due)


def compute_retry_ceiling(
    failures: int, interval_seconds: float, cap_seconds: float = CAP_SECONDS
) -> float:
    """Return the longest wait in seconds after so many failures in a row, without Retry-After.

    It starts at half an interval (0 if none is set yet), so that the agents hit by one outage do
    not return together. It never exceeds the longer of the cap and the interval: the registry
    chose an interval at which it can serve all agents.
    """
    exponential = BASE_SECONDS * 2.0 ** min(failures - 1, 30)
    return min(max(exponential, interval_seconds / 2), max(cap_seconds, interval_seconds))


def draw_retry_delay(
    failures: int,
    *,
    interval_seconds: float,
    at_least_seconds: float,
    uniform: Callable[[float, float], float],
    cap_seconds: float = CAP_SECONDS,
) -> float:
    """Return a random wait in seconds: full jitter on top of what the registry asked for.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return at_least_seconds + uniform(
        0.0, compute_retry_ceiling(failures, interval_seconds, cap_seconds)
    )
