"""Supervised background tasks: each runs as long as the app; the death of one is reported.

A task skips single items that it cannot handle (`graph.core.item_failures`). What fails beyond that
ends a run of the task, and the next run begins after a delay. Only a task whose runs go on failing
is dead.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import structlog

from db.core.restart_limit import RestartLimit
from graph.core.item_failures import ITEM_FAILURES

log = structlog.get_logger()


class BackgroundTaskDied(Exception):
    """A background task has ended although it should run for ever."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the background task {name!r} died; see the log for the cause")


class BackgroundTasks:
    """The background tasks of an app.

    `failed` holds the names of the vital tasks that ended; the app is not ready once there is one.
    `on_failure` is called once, after the first.
    """

    def __init__(self, make_limit: Callable[[], RestartLimit] = RestartLimit) -> None:
        """`make_limit` says how often a task may fail."""
        self.make_limit = make_limit
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []
        self.on_failure: Callable[[], None] = lambda: None

    def start(
        self, name: str, run: Callable[[], Coroutine[None, None, None]], *, is_vital: bool = True
    ) -> None:
        """Call and await `run`, again whenever it fails, until it has failed too often.

        The end of a task that is not vital is logged and has no other effect.
        """
        ITEM_FAILURES.labels(name)
        supervision = self._supervise(name, run, is_vital=is_vital)
        self._tasks.add(asyncio.create_task(supervision, name=name))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_all(self) -> None:
        """Check that no vital task has ended.

        Raises: BackgroundTaskDied: a task has; the message names the first.
        """
        if self.failed:
            raise BackgroundTaskDied(self.failed[0])

    async def _supervise(
        self, name: str, run: Callable[[], Coroutine[None, None, None]], *, is_vital: bool
    ) -> None:
        limit = self.make_limit()
        clock = asyncio.get_running_loop().time
        delay: float | None = 0.0
        while delay is not None:
            await asyncio.sleep(delay)
            started_at = clock()
            try:
                await run()
            except Exception as error:
                ITEM_FAILURES.labels(name).inc()
                delay = limit.record_run(clock() - started_at)
                if delay is None:
                    log.critical("background_task.died", task=name, exc_info=error)
                else:
                    log.exception("background_task.failed", task=name, restart_in_seconds=delay)
            else:
                log.critical("background_task.ended", task=name)
                break
        if is_vital:
            self.failed.append(name)
            if len(self.failed) == 1:
                self.on_failure()


@asynccontextmanager
async def open_background_tasks() -> AsyncIterator[BackgroundTasks]:
    """Yield background tasks that are cancelled and awaited at the end of the block.

    This is no TaskGroup because that would wrap the block's own errors in a group.
    """
    tasks = BackgroundTasks()
    try:
        yield tasks
    finally:
        await tasks.stop()
