"""A circuit breaker: while the registry is away, callers do not wait to learn it anew."""

from agent.pace import Clock

FAILURES = 3
BASE_SECONDS = 0.25
CAP_SECONDS = 5.0


class Breaker:
    """Opens after three failures in a row; then lets one try through at a time, ever later.

    What https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker describes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._try_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES

    def lets_through(self) -> bool:
        """Who is let through while it is open has to say how it went."""
        if not self.is_open:
            return True
        if self._clock.now() < self._try_at:
            return False
        self._wait()  # for the others, in case this one never says
        return True

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._wait()

    def _wait(self) -> None:
        delay = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self._failures - FAILURES, 10))
        self._try_at = self._clock.now() + self._clock.uniform(delay / 2, delay)
