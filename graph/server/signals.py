"""The signals that stop a process, handled from before it has started serving."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import structlog

log = structlog.get_logger()


@contextlib.contextmanager
def handle_stop_signals() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Cancel the block on SIGINT and SIGTERM, until it sets a handler by the yielded function.

    SIGHUP does the same if standard input is a terminal, which has been closed. Otherwise it asks a
    process to reload its files, which the registry does by itself, so it is logged and ignored.
    """
    main = asyncio.current_task()
    assert main is not None  # noqa: S101  # a running loop runs a task
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
    log.info("hangup.ignored")
