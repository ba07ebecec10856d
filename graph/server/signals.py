"""The signals that end a process, from the first moment at which they may come."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import structlog

log = structlog.get_logger()


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[Callable[[], None]], None]]:
    """SIGINT and SIGTERM cancel the block, until it names what they call instead.

    SIGHUP does so where a terminal was closed. Elsewhere it is for what reads its files again, and
    the registry does that by itself.
    """
    main = asyncio.current_task()
    assert main is not None  # noqa: S101  # a loop that runs, runs a task
    ways: list[Callable[[], object]] = [main.cancel]

    def stop() -> None:
        ways[-1]()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` ignores it already
        loop.add_signal_handler(signal.SIGHUP, stop if os.isatty(0) else _overhear)
    with contextlib.suppress(asyncio.CancelledError):
        yield ways.append


def _overhear() -> None:
    log.info("server.hangup", ignored=True)
