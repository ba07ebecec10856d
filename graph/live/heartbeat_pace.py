"""The heartbeat pace of the fleet, announced to agents when it changes between heartbeats."""

from collections.abc import AsyncGenerator, Sequence

from graph.core.broadcast import Broadcast
from graph.live.stream_events import PaceChanged

MIN_CHANGE_FACTOR = 1.5
"""A smaller change of the pace is not announced: nodes come and go all the time."""


class HeartbeatPace:
    """Follows the interval that heartbeat replies set. One event object for all followers."""

    def __init__(self, interval_seconds: float) -> None:
        self._current = PaceChanged(interval_seconds)
        self._changed = Broadcast()
        self.follower_count = 0

    def update(self, interval_seconds: float) -> None:
        """Announce the interval, in seconds, if it differs enough from the last one announced."""
        last = self._current.interval_seconds
        if max(interval_seconds / last, last / interval_seconds) >= MIN_CHANGE_FACTOR:
            self._current = PaceChanged(interval_seconds)
            self._changed.notify()

    async def follow(self) -> AsyncGenerator[Sequence[PaceChanged], None]:
        """Yield the current pace, then each change; a slow reader gets only the newest."""
        self.follower_count += 1
        try:
            while True:
                delivered = self._current
                yield [delivered]
                while delivered is self._current:
                    await self._changed.wait()
        finally:
            self.follower_count -= 1
