"""When a client that was refused often asks again."""

from agent.breaker import FAILURES, Breaker
from tests.support.fake_time import Time


def test_a_breaker_waits_ever_longer_up_to_a_bound() -> None:
    moment = Time(1000.0)
    breaker = Breaker(moment.clock)
    waits = []
    for _ in range(12):
        breaker.failed()
        began = moment.now
        while not breaker.lets_through():
            moment.now += 0.05
        waits.append(moment.now - began)
    assert waits[: FAILURES - 1] == [0, 0]
    assert waits[FAILURES - 1 :] == sorted(waits[FAILURES - 1 :])
    assert 4.5 < waits[-1] < 5.2
