"""A clock for the tests that moves only when a test or a sleep moves it."""

import asyncio
from dataclasses import dataclass

from agent.pace import Clock


@dataclass
class Time:
    """Time that moves only by sleeps; random delays are maximal."""

    now: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, uniform=lambda _low, high: high)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds
