"""When a client that was refused often asks again."""

from agent.breaker import FAILURES, Breaker
from agent.pace import Clock


class Time:
    """What the client takes for time; it sleeps not at all."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, uniform=lambda _low, high: high)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_breaker_waits_ever_longer_up_to_a_bound() -> None:
    moment = Time()
    breaker = Breaker(moment.clock())
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
