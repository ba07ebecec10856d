"""The circuit breaker: how long it waits before the next attempt."""

from agent.breaker import MAX_FAILURES, CircuitBreaker
from tests.support.fake_time import Time


def test_a_breaker_waits_longer_after_each_failure_up_to_a_limit() -> None:
    time = Time(1000.0)
    breaker = CircuitBreaker(time.clock)
    waits = []
    for _ in range(12):
        breaker.record_failure()
        started_at = time.now
        while not breaker.admit():
            time.now += 0.05
        waits.append(time.now - started_at)
    assert waits[: MAX_FAILURES - 1] == [0, 0]
    assert waits[MAX_FAILURES - 1 :] == sorted(waits[MAX_FAILURES - 1 :])
    assert 4.5 < waits[-1] < 5.2
