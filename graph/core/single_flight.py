"""Work that many ask for at once, done once: a bounded memory of answers, and of no failure."""

import asyncio
from asyncio import Task
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
AnswerT = TypeVar("AnswerT")


class Once(Generic[KeyT, AnswerT]):
    """Keeps the answers that were used last, up to `most` in all, as `weigh` weighs each.

    What is under way is shared too, and goes on when the one who asked first is cancelled.
    """

    def __init__(self, most: int, weigh: Callable[[AnswerT], int] = lambda _: 1) -> None:
        self._most = most
        self._weigh = weigh
        self._weight = 0
        self._running: dict[KeyT, Task[AnswerT]] = {}
        self._kept: OrderedDict[KeyT, tuple[AnswerT, int]] = OrderedDict()

    def begin(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, AnswerT]]) -> Task[AnswerT]:
        """The task of `work`, whoever began it, for what is not kept. Shield it where you wait."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._settle(key, done))
        return task

    def kept(self, key: KeyT) -> AnswerT | None:
        """What is remembered for it: it was asked for now, so it is forgotten later."""
        return self._used(key) if key in self._kept else None

    def keep(self, key: KeyT, answer: AnswerT) -> None:
        """Remembers what took no waiting."""
        self.forget(key)
        weight = self._weigh(answer)
        if weight > self._most:
            return
        self._kept[key] = answer, weight
        self._weight += weight
        while self._weight > self._most:
            _, (_, lightened) = self._kept.popitem(last=False)
            self._weight -= lightened

    async def get(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
        """The answer of `work`, whoever had it done; raises what it raised."""
        if key in self._kept:
            return self._used(key)
        return await asyncio.shield(self.begin(key, work))

    def forget(self, key: KeyT) -> None:
        """What is under way still answers those who wait for it."""
        self._running.pop(key, None)
        _, weight = self._kept.pop(key, (None, 0))
        self._weight -= weight

    def _used(self, key: KeyT) -> AnswerT:
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def _settle(self, key: KeyT, task: Task[AnswerT]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if self._running.get(key) is not task:
            return
        del self._running[key]
        if not failed:
            self.keep(key, task.result())
