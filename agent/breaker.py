"""A circuit breaker: while the registry is unavailable, callers fail at once instead of waiting."""

from agent.pace import Clock

MAX_FAILURES = 3
BASE_SECONDS = 0.25
CAP_SECONDS = 5.0


class CircuitBreaker:
    """A circuit breaker that opens after three failures in a row.

    While it is open it admits one trial at a time, each after a longer delay:
    https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._trial_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._failures >= MAX_FAILURES

    def admit(self) -> bool:
        """Return whether a request may be sent now.

        Record the outcome of each admitted request: a success closes the breaker.
        """
        if not self.is_open:
            return True
        if self._clock.now() < self._trial_at:
            return False
        self._postpone_trial()  # so that others get a trial if this outcome is never recorded
        return True

    def record_success(self) -> None:
        self._failures = 0

    def record_failure(self) -> None:
        self._failures += 1
        self._postpone_trial()

    def _postpone_trial(self) -> None:
        delay = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(self._failures - MAX_FAILURES, 10))
        self._trial_at = self._clock.now() + self._clock.uniform(delay / 2, delay)
