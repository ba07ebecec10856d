"""The agent's stop on a signal, or at the end of the process that started it."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

# A name lookup in progress cannot be cancelled, and Python would wait for it at exit.
STOP_SECONDS = 2.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def run_until_stopped(work: Awaitable[object], *, with_parent: bool = False) -> None:
    """Await `work` until it ends, or until SIGTERM or SIGINT cancels it, which is not an error.

    With `with_parent` the end of standard input cancels it too; that must be a pipe that the
    parent process holds.

    Raises: OSError: standard input cannot be watched.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    stopped = False

    def stop(reason: str) -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            loop.call_later(STOP_SECONDS, os._exit, 0)
            task.cancel()
            log.info("agent.stopping", reason=reason)

    try:
        with _signal_handlers(loop, stop), _stdin_watch(loop, stop, enabled=with_parent):
            await task
    except asyncio.CancelledError:
        if not stopped:
            raise
    finally:
        task.cancel()


@contextmanager
def _signal_handlers(
    loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]
) -> Iterator[None]:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def _stdin_watch(
    loop: asyncio.AbstractEventLoop, stop: Callable[[str], None], *, enabled: bool
) -> Iterator[None]:
    if not enabled:
        yield
        return
    if not sys.stdin:
        raise OSError("--exit-with-parent: there is no standard input")
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            stop("the parent process has ended")

    try:
        loop.add_reader(descriptor, read)
    except PermissionError:
        raise OSError("--exit-with-parent: standard input is not a pipe") from None
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
