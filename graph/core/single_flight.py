"""Single-flight: concurrent callers share one run of the same work, whose result is cached."""

import asyncio
from asyncio import Task
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ResultT = TypeVar("ResultT")


class SingleFlight(Generic[KeyT, ResultT]):
    """A least-recently-used cache of results, up to `max_weight` in total as `weigh` measures them.

    Callers share work in progress; it continues when the caller that started it is cancelled.
    Failures are not cached.
    """

    def __init__(self, max_weight: int, weigh: Callable[[ResultT], int] = lambda _: 1) -> None:
        self._max_weight = max_weight
        self._weigh = weigh
        self._weight = 0
        self._running: dict[KeyT, Task[ResultT]] = {}
        self._stored: OrderedDict[KeyT, tuple[ResultT, int]] = OrderedDict()

    def start(self, key: KeyT, work: Callable[[], Coroutine[Any, Any, ResultT]]) -> Task[ResultT]:
        """Return the running task for `key`, or start `work` as one; the cache is not consulted.

        A caller must shield the task where it awaits it, because other callers share it.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._finish(key, done))
        return task

    def get_stored(self, key: KeyT) -> ResultT | None:
        """Return the cached result or None, and mark the result as used."""
        return self._get_used(key) if key in self._stored else None

    def store(self, key: KeyT, result: ResultT) -> None:
        """Cache a result that needed no task."""
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
        """Return the cached result, or that of `work`, shared by concurrent callers.

        Raises: whatever `work` raises.
        """
        if key in self._stored:
            return self._get_used(key)
        return await asyncio.shield(self.start(key, work))

    def forget(self, key: KeyT) -> None:
        """Drop the cached result; a running task still serves those who already wait for it."""
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
