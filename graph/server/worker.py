"""A worker: one of several processes that serve one address.

Its parent, `graph.server.worker_pool`, starts it as
`python -m graph.server.worker DESCRIPTOR FOLDER NAME`, with the file descriptor of a listening
socket, and the folder and name by which its peers find it. Its standard input closes when the
parent ends. On standard output it writes READY, and later the error that ended it, in one line.
SIGTERM drains and stops it, even if it comes twice, because both systemd and the parent send it.
SIGINT ends a drain at once.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvloop

from graph.app import open_services
from graph.core.settings import Settings, load_settings
from graph.server.exit_errors import EXIT_ERRORS, format_exit_error
from graph.server.signals import handle_stop_signals
from graph.server.uvicorn_server import create_server, run_until_stopped
from graph.server.worker_pool import READY
from graph.telemetry import logs
from graph.telemetry.peer_metrics import PeerMetrics

_STDIN, _STDOUT = 0, 1


async def serve_socket(
    listener: socket.socket, settings: Settings, peer_metrics: PeerMetrics
) -> None:
    """Serve until SIGTERM or the end of the parent, and return when everything is closed.

    Raises: BackgroundTaskDied.
    """
    with handle_stop_signals() as set_stop_handler, _follow_parent(), listener:
        async with open_services(settings, peer_metrics) as services:
            server = create_server(services)
            set_stop_handler(server.drain)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, server.stop)
            _tell_parent(READY)
            await run_until_stopped(server, listener, services.background_tasks)


@contextlib.contextmanager
def _follow_parent() -> Iterator[None]:
    """Treat the end of standard input as SIGTERM: without its parent nobody else sends one."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(_STDIN, 4096):
            loop.remove_reader(_STDIN)
            signal.raise_signal(signal.SIGTERM)

    loop.add_reader(_STDIN, read)
    try:
        yield
    finally:
        loop.remove_reader(_STDIN)


def _tell_parent(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        os.write(_STDOUT, f"{line}\n".encode())


def main(descriptor: str, folder: str, name: str) -> None:
    structlog.contextvars.bind_contextvars(pid=os.getpid())  # tells the workers' log lines apart
    try:
        settings = load_settings()
        logs.configure_logging(settings.env, settings.log_level)
        listener = socket.socket(fileno=int(descriptor))
        uvloop.run(serve_socket(listener, settings, PeerMetrics(Path(folder), name)))
    except EXIT_ERRORS as error:
        _tell_parent(format_exit_error(error))
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
