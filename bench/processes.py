"""What is measured and what measures it: each on a core of its own where the machine has two.

The server has the first core, the load the second; PostgreSQL may use any.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from sqlalchemy import URL

from db.core.database import Database
from db.core.migrate import migrate
from db.embedded.server import embedded_postgres
from graph.core.settings import Settings
from graph.server.listener import listen

SETTINGS = {
    "bookmark_interval_seconds": 3600,
    "log_level": "error",
    "heartbeats_per_second": 1_000_000,
    "requests_per_second_per_address": 1_000_000,
}
"""Beside the defaults: a message that nobody caused would be counted, and all comes from one
address.
"""

_START_TIMEOUT_SECONDS = 60
_BUSY_TIMES = ("user", "nice", "system", "irq", "softirq")


def _read_cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _list_allowed_cores() -> list[int]:
    """Linux alone lets a process choose among them."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return process.cpu_affinity() or []
    return list(range(psutil.cpu_count() or 1))


CORES = _list_allowed_cores()

CPU_PLACEMENT = (
    "one for the server, one for the load; PostgreSQL free"
    if len(CORES) > 1 and hasattr(psutil.Process, "cpu_affinity")
    else "as the system places them"
)


@dataclass(frozen=True, slots=True)
class Process:
    """The bench itself, or a server of it."""

    process: psutil.Process

    @property
    def resident_bytes(self) -> int:
        memory: int = self.process.memory_info().rss
        return memory

    @property
    def cpu_seconds(self) -> float:
        return _read_cpu_seconds(self.process)

    def pin_to(self, cores: list[int]) -> None:
        if hasattr(self.process, "cpu_affinity"):
            self.process.cpu_affinity(cores)


@dataclass(frozen=True, slots=True)
class Server(Process):
    """A process that serves on the loopback address."""

    port: int

    @property
    def cpu_seconds(self) -> float:
        """Its workers' too."""
        return sum(map(_read_cpu_seconds, (self.process, *self.process.children())))


LOAD_GENERATOR = Process(psutil.Process())


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """Parts of a core; `others` are PostgreSQL and whatever else the machine does."""

    server: float
    load: float
    others: float


class CpuMeter:
    """How busy everyone has been since it was made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._seconds()

    def read(self) -> CpuUsage:
        wall, everyone, server, load = (
            now - then for now, then in zip(self._seconds(), self._began, strict=True)
        )
        return CpuUsage(server / wall, load / wall, (everyone - server - load) / wall)

    def _seconds(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        everyone = sum(getattr(times, kind, 0.0) for kind in _BUSY_TIMES)
        return time.perf_counter(), everyone, self._server.cpu_seconds, LOAD_GENERATOR.cpu_seconds


@contextlib.asynccontextmanager
async def open_database() -> AsyncIterator[Database]:
    """In a PostgreSQL as users get it, fsync and all."""
    LOAD_GENERATOR.pin_to(CORES)  # which it inherits
    with tempfile.TemporaryDirectory(prefix="node-registry-bench-") as folder:
        async with embedded_postgres(Path(folder)) as url:
            LOAD_GENERATOR.pin_to(CORES[1:2] or CORES)
            opened = Database(url)
            await migrate(opened.engine)
            yield opened
            await opened.close()


@contextlib.asynccontextmanager
async def run_registry(
    database: URL, *, port: int | None = None, workers: int = 1, **settings: object
) -> AsyncIterator[Server]:
    """`node-registry serve` with SETTINGS, and those that are given; several workers may use all
    cores.
    """
    chosen = {**SETTINGS, **settings}
    given = {f"NODE_REGISTRY_{name.upper()}": str(value) for name, value in chosen.items()}
    port = port or find_free_port()
    environment = {
        **given,
        "NODE_REGISTRY_DATABASE_URL": database.render_as_string(hide_password=False),
        "NODE_REGISTRY_HTTP_PORT": str(port),
        "NODE_REGISTRY_DRAIN_SECONDS": "0",
        "NODE_REGISTRY_WORKERS": str(workers),
    }
    cores = CORES[:1] if workers == 1 else CORES
    async with _run_process(port, ("-m", "graph", "serve"), environment, cores) as server:
        yield server


def find_free_port() -> int:
    with listen(Settings(http_port=0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def run_echo_server(
    module: str = "bench.echo_server", *arguments: str
) -> AsyncIterator[Server]:
    with listen(Settings(http_port=0)) as listening:
        program = ("-m", module, str(listening.fileno()), *arguments)
        port = listening.getsockname()[1]
        async with _run_process(port, program, {}, CORES[:1], listening.fileno()) as server:
            yield server


def run_commit_server(database: URL) -> contextlib.AbstractAsyncContextManager[Server]:
    return run_echo_server("bench.commit_server", database.render_as_string(hide_password=False))


@contextlib.asynccontextmanager
async def _run_process(
    port: int,
    program: tuple[str, ...],
    environment: Mapping[str, str],
    cores: list[int],
    *inherited: int,
) -> AsyncIterator[Server]:
    others = {n: v for n, v in os.environ.items() if not n.startswith("NODE_REGISTRY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        env={**others, **environment},
        pass_fds=inherited,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        server = Server(psutil.Process(process.pid), port)
        server.pin_to(cores)
        await _wait_until_ready(process, port)
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _wait_until_ready(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(_START_TIMEOUT_SECONDS), httpx.AsyncClient() as http:
        while process.returncode is None:
            with contextlib.suppress(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{port}/health/live")
                return
            await asyncio.sleep(0.05)
    raise ChildProcessError(f"a server ended as it started, with {process.returncode}")
