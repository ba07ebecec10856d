"""The parent of several processes that serve one address: what exists once, and their lives."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog

from graph.core.open_database import open_database
from graph.core.settings import Settings
from graph.live.background_tasks import open_background_tasks
from graph.server.exit_errors import WorkerFailed
from graph.server.listener import begin_serving, listen
from graph.server.signals import stoppable

log = structlog.get_logger()

# Safe path: a folder `graph` where the registry happens to be started is not ours.
_COMMAND = (sys.executable, "-P", "-m", "graph.server.worker")

READY = "ready"
"""What a worker says on its standard output once it serves."""

_STEADY_SECONDS = 10
_SHORTEST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_GIVE_UP_AFTER = 8  # lives, in more than 16 s: a database may just be starting anew
_CLOSE_SECONDS = 5  # what a worker may take for its services, once its clients are gone


def restart_delay_seconds(brief: int) -> float:
    """After so many lives in a row that were brief; there may be any number of them."""
    return min(_LONGEST_DELAY_SECONDS, _SHORTEST_DELAY_SECONDS * 2.0 ** min(brief, 10))


async def serve_by_workers(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM, when everything is closed; raises WorkerFailed."""
    with stoppable() as stop_by, _shared_port(settings) as sockets:
        async with open_database(settings) as database, open_background_tasks() as supervisor:
            await database.close()  # nothing more is asked of it here
            environment = dict(os.environ)
            if settings.external_database is None:
                url = database.url.render_as_string(hide_password=False)
                environment["NODE_REGISTRY_DATABASE_URL"] = url
            workers = Workers(
                sockets,
                environment,
                stop_seconds=settings.drain_seconds + settings.shutdown_seconds + _CLOSE_SECONDS,
                when_serving=lambda: begin_serving(sockets[0], settings, supervisor),
            )
            stop_by(workers.stop)
            await workers.run()


@contextlib.contextmanager
def _shared_port(settings: Settings) -> Iterator[list[socket.socket]]:
    """A socket for each worker: the kernel spreads connections over them evenly.

    From one socket the worker that wakes first takes most, and keeps them as long as they live.
    """
    with contextlib.ExitStack() as stack:
        # Bound alone, so that an address in use is refused, and shared only then.
        first = stack.enter_context(listen(settings))
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        same = settings.model_copy(update={"http_port": first.getsockname()[1]})
        others = (listen(same, reuse_port=True) for _ in range(settings.workers - 1))
        yield [first, *map(stack.enter_context, others)]


@dataclass(frozen=True)
class _Life:
    """From the start of a worker to its end; `served_seconds` is None if it never served."""

    pid: int | None
    served_seconds: float | None
    end: str


class Workers:
    """Keeps a process on each socket until it is told to stop.

    The sockets stay open here as well: what connects while a worker is replaced waits for the next.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        environment: Mapping[str, str],
        *,
        stop_seconds: float,
        when_serving: Callable[[], None],
    ) -> None:
        self._sockets = sockets
        self._environment = environment
        self._stop_seconds = stop_seconds
        self._when_serving = when_serving
        self._yet_to_serve = set(sockets)
        self._processes: set[Process] = set()
        self._stopping = asyncio.Event()
        self._failure: WorkerFailed | None = None

    async def run(self) -> None:
        """Calls `when_serving` once all serve; returns when all have ended.

        Raises WorkerFailed, after the others have ended, if one never starts or starts no more.
        """
        with tempfile.TemporaryDirectory(prefix="node-registry-") as folder:
            places = ((folder, str(number)) for number in range(len(self._sockets)))
            await asyncio.gather(*map(self._keep, self._sockets, places))
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Lets them drain and end; called once more, hurries them. Kills them when it is time."""
        if self._stopping.is_set():
            self._signal(signal.SIGINT)
            return
        self._stopping.set()
        for listening in self._sockets:
            listening.close()  # else clients would go on connecting to nobody
        asyncio.get_running_loop().call_later(self._stop_seconds, self._kill)
        self._signal(signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes:
            log.error("worker.stop_overdue", pid=process.pid)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, listening: socket.socket, place: tuple[str, str]) -> None:
        """`place` is where its siblings find the worker: a folder, and its name there."""
        brief = 0  # lives in a row that ended before they were steady
        while not self._stopping.is_set():
            life = await self._live(listening, place)
            if self._stopping.is_set():
                break
            brief = 0 if (life.served_seconds or 0) > _STEADY_SECONDS else brief + 1
            first = listening in self._yet_to_serve
            if life.served_seconds is None and (first or brief >= _GIVE_UP_AFTER):
                self._failure = WorkerFailed(life.end)
                self.stop()
                break
            delay = restart_delay_seconds(brief)
            log.error("worker.ended", pid=life.pid, end=life.end, restart_in_seconds=delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _live(self, listening: socket.socket, place: tuple[str, str]) -> _Life:
        try:
            process = await asyncio.create_subprocess_exec(
                *(*_COMMAND, str(listening.fileno()), *place),
                env=self._environment,
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=[listening.fileno()],
                # Ctrl-C in a terminal reaches every process of the group: this one stops them.
                start_new_session=True,
            )
        except OSError as error:
            return _Life(None, None, str(error))
        assert process.stdout is not None  # noqa: S101  # asked for above
        self._processes.add(process)
        if self._stopping.is_set():
            process.terminate()
        said = (await process.stdout.readline()).decode().strip()
        began = time.monotonic() if said == READY else None
        if began is not None:
            self._serves(listening, process)
            said = (await process.stdout.read()).decode().strip()
        status = await process.wait()
        self._processes.discard(process)
        served_seconds = None if began is None else time.monotonic() - began
        return _Life(process.pid, served_seconds, said or f"it ended with status {status}")

    def _serves(self, listening: socket.socket, process: Process) -> None:
        log.info("worker.serves", pid=process.pid)
        if listening in self._yet_to_serve:
            self._yet_to_serve.remove(listening)
            if not self._yet_to_serve and not self._stopping.is_set():
                self._when_serving()
