"""The queue in which connections of unknown peers take turns when they send much."""

import asyncio
import time
from collections import deque
from typing import Protocol

TURN_SECONDS = 0.002
PAUSE_RATIO = 2.5
"""Time that everything else has after each turn, as a multiple of the time that the turn took."""

MIN_PAUSE_SECONDS = 0.005


class Reader(Protocol):
    """A connection that has received more than it has read."""

    def read_part(self) -> bool:
        """Read one part; return whether a request began, which has a cost of its own."""


class FairQueue:
    """Lets readers read one part each in turn, with at most two sevenths of the loop's time.

    A peer that sends faster than it is read delays its own kind: those that send little do not wait
    here, and known ones neither.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: deque[Reader] = deque()
        self._is_scheduled = False
        self._next_turn_at = 0.0

    def add(self, reader: Reader) -> None:
        self._readers.append(reader)
        if not self._is_scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_at(self._next_turn_at, self._take_turn)

    def _take_turn(self) -> None:
        started = time.perf_counter()
        seconds, began_request = 0.0, False
        while self._readers and not began_request and seconds < TURN_SECONDS:
            began_request = self._readers.popleft().read_part()
            seconds = time.perf_counter() - started
        self._next_turn_at = self._loop.time() + max(MIN_PAUSE_SECONDS, PAUSE_RATIO * seconds)
        self._is_scheduled = False
        if self._readers:
            self._schedule()
