"""Clocks for the tests, which move only when they are told to."""

import asyncio
from dataclasses import dataclass

from agent.pace import Clock


@dataclass
class Time:
    """Moves only when someone sleeps; chance always says the most."""

    now: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, uniform=lambda _low, high: high)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds
