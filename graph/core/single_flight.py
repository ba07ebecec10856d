"""Work that many ask for at once, done once: a bounded memory of answers, and of no failure."""

import asyncio
from asyncio import Task
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ResultT = TypeVar("ResultT")


class SingleFlight(Generic[KeyT, ResultT]):
    """Keeps the answers that were used last, up to `max_weight` in all, as `weigh` weighs each.

    What is under way is shared too, and goes on when the one who asked first is cancelled.
    """

    def __init__(self, max_weight: int, weigh: Callable[[ResultT], int] = lambda _: 1) -> None:
        self._max_weight = max_weight
        self._weigh = weigh
        self._weight = 0
        self._running: dict[KeyT, Task[ResultT]] = {}
        self._stored: OrderedDict[KeyT, tuple[ResultT, int]] = OrderedDict()

    def start(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> Task[ResultT]:
        """The task of `work`, whoever began it, for what is not kept. Shield it where you wait."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._finish(key, done))
        return task

    def get_stored(self, key: KeyT) -> ResultT | None:
        """What is remembered for it: it was asked for now, so it is forgotten later."""
        return self._get_used(key) if key in self._stored else None

    def store(self, key: KeyT, result: ResultT) -> None:
        """Remembers what took no waiting."""
        self.forget(key)
        weight = self._weigh(result)
        if weight > self._max_weight:
            return
        self._stored[key] = result, weight
        self._weight += weight
        while self._weight > self._max_weight:
            _, (_, evicted_weight) = self._stored.popitem(last=False)
            self._weight -= evicted_weight

    async def get(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """The answer of `work`, whoever had it done; raises what it raised."""
        if key in self._stored:
            return self._get_used(key)
        return await asyncio.shield(self.start(key, work))

    def forget(self, key: KeyT) -> None:
        """What is under way still answers those who wait for it."""
        self._running.pop(key, None)
        _, weight = self._stored.pop(key, (None, 0))
        self._weight -= weight

    def _get_used(self, key: KeyT) -> ResultT:
        self._stored.move_to_end(key)
        return self._stored[key][0]

    def _finish(self, key: KeyT, task: Task[ResultT]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if self._running.get(key) is not task:
            return
        del self._running[key]
        if not failed:
            self.store(key, task.result())
