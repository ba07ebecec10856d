"""A circuit breaker: while the registry is away, callers do not wait to learn it anew."""

from agent.pace import Clock

MAX_FAILURES = 3
BASE_SECONDS = 0.25
CAP_SECONDS = 5.0


class CircuitBreaker:
    """Opens after three failures in a row; then lets one try through at a time, ever later.

    What https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker describes.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._trial_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= MAX_FAILURES

    def admit(self) -> bool:
        """Who is let through while it is open has to say how it went."""
        if not self.is_open:
            return True
        if self._clock.now() < self._trial_at:
            return False
        self._postpone_trial()  # for the others, in case this one never says
        return True

    def record_success(self) -> None:
        self._failures = 0

    def record_failure(self) -> None:
        self._failures += 1
        self._postpone_trial()

    def _postpone_trial(self) -> None:
        delay = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self._failures - MAX_FAILURES, 10))
        self._trial_at = self._clock.now() + self._clock.uniform(delay / 2, delay)
