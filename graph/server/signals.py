"""The signals that end a process, from the first moment at which they may come."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import structlog

log = structlog.get_logger()


@contextlib.contextmanager
def handle_stop_signals() -> Iterator[Callable[[Callable[[], None]], None]]:
    """SIGINT and SIGTERM cancel the block, until it names what they call instead.

    SIGHUP does so where a terminal was closed. Elsewhere it is for what reads its files again, and
    the registry does that by itself.
    """
    main = asyncio.current_task()
    assert main is not None  # noqa: S101  # a loop that runs, runs a task
    handlers: list[Callable[[], object]] = [main.cancel]

    def stop() -> None:
        handlers[-1]()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` ignores it already
        loop.add_signal_handler(signal.SIGHUP, stop if os.isatty(0) else _ignore_hangup)
    with contextlib.suppress(asyncio.CancelledError):
        yield handlers.append


def _ignore_hangup() -> None:
    log.info("server.hangup", ignored=True)
