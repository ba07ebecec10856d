"""The parent of several workers: it owns what exists once per address, and restarts workers."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from db.core.restart_limit import RestartLimit
from graph.core.open_database import open_database
from graph.core.settings import Settings
from graph.live.background_tasks import open_background_tasks
from graph.server.exit_errors import WorkerFailed
from graph.server.listener import finish_startup, listen
from graph.server.signals import handle_stop_signals

log = structlog.get_logger()

# -P: do not import from a folder `graph` in the current directory.
_COMMAND = (sys.executable, "-P", "-m", "graph.server.worker")

READY = "ready"
"""The line that a worker writes on its standard output once it serves."""

_CLOSE_SECONDS = 5  # for a worker to close its services once its clients are gone
_MAX_LINE_BYTES = 4096


async def serve_with_workers(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, and return when everything is closed.

    Raises: WorkerFailed, OSError, and the errors of `open_database`.
    """
    with handle_stop_signals() as set_stop_handler, _open_listeners(settings) as sockets:
        async with open_database(settings) as database, open_background_tasks() as background_tasks:
            await database.close()  # the workers connect by themselves
            environment = dict(os.environ)
            if settings.external_database is None:
                url = database.url.render_as_string(hide_password=False)
                environment["NODE_REGISTRY_DATABASE_URL"] = url
            pool = WorkerPool(
                sockets,
                environment,
                stop_seconds=settings.drain_seconds + settings.shutdown_seconds + _CLOSE_SECONDS,
                on_serving=lambda: finish_startup(sockets[0], settings, background_tasks),
            )
            set_stop_handler(pool.stop)
            await pool.run()


@contextlib.contextmanager
def _open_listeners(settings: Settings) -> Iterator[list[socket.socket]]:
    """Yield a listening socket for each worker, so that the kernel spreads connections evenly.

    On a single socket the worker that wakes first would accept most of them, and keep them.
    """
    with contextlib.ExitStack() as stack:
        # Bind it alone first, so that an address in use is an error, and share it only then.
        first = stack.enter_context(listen(settings))
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        resolved = settings.model_copy(update={"http_port": first.getsockname()[1]})
        more = (listen(resolved, reuse_port=True) for _ in range(settings.workers - 1))
        yield [first, *map(stack.enter_context, more)]


@dataclass(frozen=True)
class _WorkerRun:
    """One run of a worker, from start to end; `served_seconds` is None if it never served."""

    pid: int | None
    served_seconds: float | None
    end: str


class WorkerPool:
    """The workers of an address: one on each socket, restarted until the pool is stopped.

    The parent keeps the sockets open too, so that clients which connect while a worker is replaced
    wait for the next one.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        environment: Mapping[str, str],
        *,
        stop_seconds: float,
        on_serving: Callable[[], None],
        make_limit: Callable[[], RestartLimit] = RestartLimit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make_limit` says how often each worker may end soon after its start."""
        self._make_limit = make_limit
        self._clock = clock
        self._sockets = sockets
        self._environment = environment
        self._stop_seconds = stop_seconds
        self._on_serving = on_serving
        self._pending = set(sockets)
        self._processes: set[Process] = set()
        self._stopping = asyncio.Event()
        self._failure: WorkerFailed | None = None

    async def run(self) -> None:
        """Run the workers until all have ended; call `on_serving` once all of them serve.

        Raises: WorkerFailed: a worker cannot start, or not any more; the others have ended.
        """
        with tempfile.TemporaryDirectory(prefix="node-registry-") as folder:
            peer_addresses = ((folder, str(number)) for number in range(len(self._sockets)))
            await asyncio.gather(*map(self._keep_running, self._sockets, peer_addresses))
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Drain and end the workers; on a second call hurry them. Kill those that take too long."""
        if self._stopping.is_set():
            self._signal(signal.SIGINT)
            return
        self._stopping.set()
        for listener in self._sockets:
            listener.close()  # otherwise clients would still connect, and get no response
        asyncio.get_running_loop().call_later(self._stop_seconds, self._kill)
        self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes:
            log.error("worker.killed", pid=process.pid)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep_running(self, listener: socket.socket, peer_address: tuple[str, str]) -> None:
        """Run and restart a worker; its peers find it by `peer_address`, a folder and a name."""
        limit = self._make_limit()
        while not self._stopping.is_set():
            run = await self._run_once(listener, peer_address)
            if self._stopping.is_set():
                break
            delay = limit.record_run(run.served_seconds or 0.0)
            has_never_served = listener in self._pending
            if delay is None or has_never_served:
                short_runs = 0 if run.served_seconds is None else limit.short_runs
                self._failure = WorkerFailed(run.end, short_runs=short_runs)
                self.stop()
                break
            log.error("worker.ended", pid=run.pid, end=run.end, restart_in_seconds=delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _run_once(self, listener: socket.socket, peer_address: tuple[str, str]) -> _WorkerRun:
        try:
            process = await asyncio.create_subprocess_exec(
                *(*_COMMAND, str(listener.fileno()), *peer_address),
                env=self._environment,
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=[listener.fileno()],
                # Ctrl-C in a terminal signals the process group, but this one stops the workers.
                start_new_session=True,
            )
        except OSError as error:
            return _WorkerRun(None, None, str(error))
        assert process.stdout is not None  # noqa: S101  # requested by PIPE above
        self._processes.add(process)
        if self._stopping.is_set():
            process.terminate()
        serving_since: float | None = None
        last_line = ""
        async for line in _read_lines(process.stdout):
            if line == READY and serving_since is None:
                serving_since = self._clock()
                self._note_serving(listener, process)
            else:
                last_line = line or last_line
        status = await process.wait()
        self._processes.discard(process)
        served_seconds = None if serving_since is None else self._clock() - serving_since
        end = last_line or f"it ended with status {status}"
        return _WorkerRun(process.pid, served_seconds, end)

    def _note_serving(self, listener: socket.socket, process: Process) -> None:
        log.info("worker.started", pid=process.pid)
        if listener in self._pending:
            self._pending.remove(listener)
            if not self._pending and not self._stopping.is_set():
                self._on_serving()


async def _read_lines(output: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the lines of the output as they arrive, each cut to _MAX_LINE_BYTES."""
    line = b""
    while chunk := await output.read(_MAX_LINE_BYTES):
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield _decode_line(line + part)
            line = b""
        line = (line + rest)[:_MAX_LINE_BYTES]
    if line:
        yield _decode_line(line)


def _decode_line(line: bytes) -> str:
    return line[:_MAX_LINE_BYTES].decode(errors="replace").strip()
