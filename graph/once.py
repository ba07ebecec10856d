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
        self._tasks: OrderedDict[KeyT, Task[AnswerT]] = OrderedDict()

    def begin(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, AnswerT]]) -> Task[AnswerT]:
        """The task of `work`, whoever began it. Shield it where you wait for it."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._settle(key, done))
        else:
            self._tasks.move_to_end(key)
        return task

    async def get(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, AnswerT]]) -> AnswerT:
        """The answer of `work`, whoever had it done; raises what it raised."""
        return await asyncio.shield(self.begin(key, work))

    def forget(self, key: KeyT) -> None:
        task = self._tasks.pop(key, None)
        if task is not None and task.done():
            self._weight -= self._weigh(task.result())

    def _settle(self, key: KeyT, task: Task[AnswerT]) -> None:
        if self._tasks.get(key) is not task:
            return
        if task.cancelled() or task.exception() is not None:
            del self._tasks[key]
            return
        self._weight += self._weigh(task.result())
        while self._weight > self._most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self.forget(next(key for key, task in self._tasks.items() if task.done()))
