"""When a client that was refused often asks again."""

from agent.breaker import MAX_FAILURES, CircuitBreaker
from tests.support.fake_time import Time


def test_a_breaker_waits_ever_longer_up_to_a_bound() -> None:
    moment = Time(1000.0)
    breaker = CircuitBreaker(moment.clock)
    waits = []
    for _ in range(12):
        breaker.record_failure()
        began = moment.now
        while not breaker.admit():
            moment.now += 0.05
        waits.append(moment.now - began)
    assert waits[: MAX_FAILURES - 1] == [0, 0]
    assert waits[MAX_FAILURES - 1 :] == sorted(waits[MAX_FAILURES - 1 :])
    assert 4.5 < waits[-1] < 5.2
