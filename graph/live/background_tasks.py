"""Background tasks: each runs for as long as the app does, and one that dies is not overlooked."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger()


class BackgroundTaskDied(Exception):
    """The log has why; what it did is not done any more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the background task {name!r} died; the log has why")


class BackgroundTasks:
    """`failed` names the tasks that ended although they should not: the app is not ready then.

    `when_failed` is called once, after the first of them.
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
        """Raises BackgroundTaskDied."""
        if self.failed:
            raise BackgroundTaskDied(self.failed[0])

    async def _watch(self, name: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:
            log.critical("background.died", task=name, exc_info=error)
        else:
            log.critical("background.ended", task=name)
        self.failed.append(name)
        if len(self.failed) == 1:
            self.on_failure()


@asynccontextmanager
async def open_background_tasks() -> AsyncIterator[BackgroundTasks]:
    """Cancels what still runs at the end of the block, and waits for it.

    Not a TaskGroup: that would hide what the block itself raises in a group.
    """
    supervisor = BackgroundTasks()
    try:
        yield supervisor
    finally:
        await supervisor.stop()
