"""The pace of the fleet, told to agents when it changes between two of their heartbeats."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import strawberry

from graph.api.types import field

NEWS = 1.5
"""The factor by which the pace changes before it is told anew: nodes come and go all the time."""


@strawberry.type(
    description="The interval that replies promise now. A node whose next heartbeat is due later"
    " than that from now sends it earlier: at a random moment within the interval, because all"
    " nodes are told at once. One that is due earlier stays due."
)
class HeartbeatPace:
    interval_seconds: float = field("The pace of the fleet, without jitter.")


class Pace:
    """Follows the interval that replies promise. One event for all who are told of it."""

    def __init__(self, interval_seconds: float) -> None:
        self._told = HeartbeatPace(interval_seconds=interval_seconds)
        self._changed = asyncio.Event()
        self.followers = 0

    def learn(self, interval_seconds: float) -> None:
        was = self._told.interval_seconds
        if max(interval_seconds / was, was / interval_seconds) >= NEWS:
            self._told = HeartbeatPace(interval_seconds=interval_seconds)
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def follow(self) -> AsyncGenerator[Sequence[HeartbeatPace], None]:
        """The pace as it is, then each that is news; one that is too slow for all gets the last."""
        self.followers += 1
        try:
            while True:
                told = self._told
                yield [told]
                while told is self._told:
                    await self._changed.wait()
        finally:
            self.followers -= 1
