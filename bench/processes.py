"""The processes of a bench: PostgreSQL, the server under test, and the load, with their CPU use.

Where the machine has two cores, the server gets the first and the load the second; PostgreSQL may
use any.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil
from sqlalchemy import URL

from db.core.database import Database
from db.core.migrate import migrate
from db.embedded.server import run_embedded_postgres
from graph.core.settings import Settings
from graph.server.listener import listen

SETTINGS = {
    "bookmark_interval_seconds": 3600,
    "log_level": "error",
    "heartbeats_per_second": 1_000_000,
    "heartbeats_per_interval": 1_000_000,
    "node_bytes_per_day": 2**62,
    "requests_per_second_per_address": 1_000_000,
}
"""The settings of a measured registry that differ from the defaults.

A bookmark would count as a message that no change caused, and the whole load comes from one
address.
"""

_START_TIMEOUT_SECONDS = 60
_BUSY_TIMES = ("user", "nice", "system", "irq", "softirq")


def _read_cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _list_allowed_cores() -> list[int]:
    """Return the cores that this process may use; only Linux lets it choose among them."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return process.cpu_affinity() or []
    return list(range(psutil.cpu_count() or 1))


CORES = _list_allowed_cores()

CPU_PLACEMENT = (
    "one for the server, one for the load; PostgreSQL on any"
    if len(CORES) > 1 and hasattr(psutil.Process, "cpu_affinity")
    else "chosen by the operating system"
)


@dataclass(frozen=True, slots=True)
class Process:
    """The bench itself, or a server that it started."""

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
    """A process that serves on a port of the loopback address."""

    port: int

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of the process and of its workers, in seconds."""
        return sum(map(_read_cpu_seconds, (self.process, *self.process.children())))


LOAD_GENERATOR = Process(psutil.Process())


@dataclass(frozen=True, slots=True)
class CpuUsage:
    """CPU use in cores; `others` is PostgreSQL and everything else on the machine."""

    server: float
    load: float
    others: float


class CpuMeter:
    """Measures CPU use from its creation on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start = self._read_seconds()

    def read(self) -> CpuUsage:
        wall, total, server, load = (
            now - then for now, then in zip(self._read_seconds(), self._start, strict=True)
        )
        return CpuUsage(server / wall, load / wall, (total - server - load) / wall)

    def _read_seconds(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        total = sum(getattr(times, kind, 0.0) for kind in _BUSY_TIMES)
        return time.perf_counter(), total, self._server.cpu_seconds, LOAD_GENERATOR.cpu_seconds


def describe_cpu_usage(usages: Sequence[CpuUsage]) -> str:
    """Return a phrase with the median CPU use of several runs."""
    server, load, others = (
        median(getattr(usage, name) for usage in usages) for name in ("server", "load", "others")
    )
    return f"server {server:.0%} of a core, load {load:.0%}, PostgreSQL and others {others:.0%}"


@contextlib.asynccontextmanager
async def open_database() -> AsyncIterator[Database]:
    """Run an embedded PostgreSQL configured as for users, with fsync, and yield its database."""
    LOAD_GENERATOR.pin_to(CORES)  # PostgreSQL inherits it
    with tempfile.TemporaryDirectory(prefix="node-registry-bench-") as folder:
        async with run_embedded_postgres(Path(folder)) as url:
            LOAD_GENERATOR.pin_to(CORES[1:2] or CORES)
            database = Database(url)
            await migrate(database.engine)
            yield database
            await database.close()


@contextlib.asynccontextmanager
async def run_registry(
    database_url: URL, *, port: int | None = None, workers: int = 1, **settings: object
) -> AsyncIterator[Server]:
    """Run `node-registry serve` with SETTINGS, overridden by `settings`.

    One worker has the first core for itself; several may use all cores.
    """
    values = {**SETTINGS, **settings}
    variables = {f"NODE_REGISTRY_{name.upper()}": str(value) for name, value in values.items()}
    port = port or find_free_port()
    environment = {
        **variables,
        "NODE_REGISTRY_DATABASE_URL": database_url.render_as_string(hide_password=False),
        "NODE_REGISTRY_HTTP_PORT": str(port),
        "NODE_REGISTRY_DRAIN_SECONDS": "0",
        "NODE_REGISTRY_WORKERS": str(workers),
    }
    cores = CORES[:1] if workers == 1 else CORES
    async with _run_process(port, ("-m", "graph", "serve"), environment, cores) as server:
        yield server


def find_free_port() -> int:
    with listen(Settings(http_port=0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def run_echo_server(
    module: str = "bench.echo_server", *arguments: str
) -> AsyncIterator[Server]:
    """Run the echo server, or another module that serves on a listening socket it inherits."""
    with listen(Settings(http_port=0)) as listener:
        program = ("-m", module, str(listener.fileno()), *arguments)
        port = listener.getsockname()[1]
        async with _run_process(port, program, {}, CORES[:1], listener.fileno()) as server:
            yield server


def run_commit_server(database_url: URL) -> contextlib.AbstractAsyncContextManager[Server]:
    """Run the commit server on a database."""
    return run_echo_server(
        "bench.commit_server", database_url.render_as_string(hide_password=False)
    )


@contextlib.asynccontextmanager
async def _run_process(
    port: int,
    program: tuple[str, ...],
    environment: Mapping[str, str],
    cores: list[int],
    *inherited_descriptors: int,
) -> AsyncIterator[Server]:
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("NODE_REGISTRY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        env={**inherited, **environment},
        pass_fds=inherited_descriptors,
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
    raise ChildProcessError(f"a server exited during startup with status {process.returncode}")
