"""When to send: the registry's pace, and the back-off while it is away."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

BASE_SECONDS = 1.0
CAP_SECONDS = 60.0
# How soon after it wakes a machine that slept notices that a heartbeat is due.
SLICE_SECONDS = 5.0

# Unlike time.monotonic these go on while the machine sleeps: on Linux, else on macOS.
_AWAKE_OR_NOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the agent gets time and chance from; a test brings its own."""

    now: Callable[[], float] = lambda: time.clock_gettime(_AWAKE_OR_NOT)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform

    async def wait(self, seconds: float) -> None:
        """Ends early, by its own measure, when the machine has slept over the time."""
        due = self.now() + seconds
        while (left := due - self.now()) > 0:
            await self.sleep(min(left, SLICE_SECONDS))


def retry_ceiling(failures: int, interval_seconds: float) -> float:
    """The longest wait behind so many failures in a row, before `retryAfterSeconds`.

    It starts at half an interval (0: none is set yet), so that those whom one outage hit do not
    come back together. It need not exceed the interval, or a minute: the registry chose an
    interval at which it can serve everyone.
    """
    exponential = BASE_SECONDS * 2.0 ** min(failures - 1, 30)
    return min(max(exponential, interval_seconds / 2), max(CAP_SECONDS, interval_seconds))


def retry_delay(
    failures: int,
    *,
    interval_seconds: float,
    at_least_seconds: float,
    uniform: Callable[[float, float], float],
) -> float:
    """Full jitter on top of what the registry asked for.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return at_least_seconds + uniform(0.0, retry_ceiling(failures, interval_seconds))
