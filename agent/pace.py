"""When to send: the registry's pace, and the back-off while it is away."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BASE_SECONDS = 1.0
CAP_SECONDS = 60.0
# How soon a heartbeat is noticed to be due: the machine has slept, or the pace has changed.
SLICE_SECONDS = 1.0

# Unlike time.monotonic these go on while the machine sleeps: on Linux, else on macOS.
_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the agent gets time and chance from; a test brings its own."""

    now: Callable[[], float] = lambda: time.clock_gettime(_CLOCK_ID)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform

    async def wait(self, seconds: float) -> None:
        """Ends early, by its own measure, when the machine has slept over the time."""
        due = self.now() + seconds
        await self.wait_until(lambda: due)

    async def wait_until(self, due: Callable[[], float]) -> None:
        """`due`, as `now` has it, may move meanwhile."""
        while (left := due() - self.now()) > 0:
            await self.sleep(min(left, SLICE_SECONDS))


class Schedule:
    """When the next heartbeat is due: as promised, or earlier when the pace has become faster."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pace_seconds = 0.0
        self.interval_seconds = 0.0
        """What was promised last; 0 before that."""
        self.due = clock.now()

    def set_interval(self, seconds: float) -> None:
        """By a reply, from now on."""
        self.interval_seconds = seconds
        self.due = self._clock.now() + seconds

    def apply_pace(self, seconds: float) -> None:
        """All agents hear it at the same moment, so each draws its own within the interval.

        A slower pace changes nothing: the node is judged by what it was promised.
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
    """The longest wait behind so many failures in a row, before `retryAfterSeconds`.

    It starts at half an interval (0: none is set yet), so that those whom one outage hit do not
    come back together. It need not exceed the interval, or the cap: the registry chose an interval
    at which it can serve everyone.
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
    """Full jitter on top of what the registry asked for.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return at_least_seconds + uniform(
        0.0, compute_retry_ceiling(failures, interval_seconds, cap_seconds)
    )
