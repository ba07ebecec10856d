"""Supervised background tasks: each runs as long as the app; the death of one is reported."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger()


class BackgroundTaskDied(Exception):
    """A background task has ended although it should run for ever."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the background task {name!r} died; see the log for the cause")


class BackgroundTasks:
    """The background tasks of an app.

    `failed` holds the names of the tasks that ended; the app is not ready once there is one.
    `on_failure` is called once, after the first.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []
        self.on_failure: Callable[[], None] = lambda: None

    def start(self, name: str, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.create_task(self._watch(name, work), name=name))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_all(self) -> None:
        """Check that no task has ended.

        Raises: BackgroundTaskDied: a task has; the message names the first.
        """
        if self.failed:
            raise BackgroundTaskDied(self.failed[0])

    async def _watch(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            log.critical("background_task.died", task=name, exc_info=error)
        else:
            log.critical("background_task.ended", task=name)
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
