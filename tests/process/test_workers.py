"""Workers on one address: they share connections, are replaced and end together."""

import asyncio
import re
import secrets
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.types import EventDict

from db.core.restart_limit import RestartLimit
from graph.core.settings import ConfigurationError, Settings, load_settings
from graph.server.exit_errors import WorkerFailed
from graph.server.listener import listen
from graph.server.worker_pool import WorkerPool
from tests.support.api import CHANGES, REGISTER
from tests.support.clusters import find_processes
from tests.support.live_server import NO_TLS
from tests.support.processes import BIN, FAST, SECONDS, Process, query_until_answered, run_program
from tests.support.transport_ws import Client, connect
from tests.support.waiting import wait_until

SERVE = (BIN / "node-registry", "serve", "--workers", "2")
NODE = {"role": "BACKUP", "type": "WORKER", "bootId": "b"}


@dataclass
class Registry:
    parent: Process
    url: str

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 0

    def workers(self) -> list[psutil.Process]:
        processes = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.parent.process.pid).children():
                with suppress(psutil.Error):
                    if "graph.server.worker" in child.cmdline():
                        processes.append(child)
        return processes

    def find_worker(self, client: Client) -> int:
        """Return the pid of the process at the other end of the connection."""
        address = client.socket.local_address
        for worker in self.workers():
            if any(connection.raddr == address for connection in worker.net_connections("tcp")):
                return worker.pid
        raise AssertionError("no worker holds it")


@asynccontextmanager
async def run_pool(database_url: URL, **environment: str) -> AsyncIterator[Registry]:
    """A registry of two workers, both of which serve."""
    address = database_url.render_as_string(hide_password=False)
    settings = FAST | {"NODE_REGISTRY_DATABASE_URL": address} | environment
    # Some tests kill the parent, so that it cannot clean up.
    with tempfile.TemporaryDirectory() as folder:
        settings["TMPDIR"] = folder
        async with run_program(*SERVE, **settings) as parent:
            url = (await parent.wait_for_line(r"GraphQL +(\S+)")).group(1)
            registry = Registry(parent, url)
            workers = registry.workers()
            assert len(workers) == 2
            try:
                yield registry
            finally:
                for worker in {*workers, *registry.workers()}:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()


def is_running(process: psutil.Process) -> bool:
    """Return whether a process runs; a zombie has ended, even if nothing reaps it."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@asynccontextmanager
async def connect_to_each_worker(registry: Registry) -> AsyncIterator[dict[int, Client]]:
    """Yield a client of each worker; the kernel distributes connections at random."""
    clients: dict[int, Client] = {}
    async with AsyncExitStack() as stack:
        for _ in range(200):
            client = await stack.enter_async_context(connect(registry.websocket_url))
            clients.setdefault(registry.find_worker(client), client)
            if len(clients) == 2:
                break
        yield clients


async def receive_change_reason(client: Client) -> str:
    event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
    reason: str = event["change"]["reason"]
    return reason


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


async def test_a_change_reaches_the_subscribers_of_every_worker_and_sigterm_stops_all_workers(
    database_url: URL,
) -> None:
    async with run_pool(database_url, NODE_REGISTRY_DRAIN_SECONDS="0.1") as registry:
        workers = registry.workers()
        async with connect_to_each_worker(registry) as clients:
            assert set(clients) == {worker.pid for worker in workers}
            for client in clients.values():
                nodes = {"nodeIds": ["a", "node-1-hetzner-gex44"]}
                await client.subscribe("1", CHANGES, after="0", filter=nodes)
                # The first event shows that the subscription has started.
                assert await receive_change_reason(client) == "SEEDED"
            await query_until_answered(registry.url, REGISTER, input=NODE | {"nodeId": "a"})
            for client in clients.values():
                assert await receive_change_reason(client) == "REGISTERED"
            async with httpx.AsyncClient(timeout=SECONDS) as http:
                metrics = (await http.get(registry.url.replace("/graphql", "/metrics"))).text
            for worker in ("0", "1"):
                follower = f'node_registry_subscribers{{stream="status_changes",worker="{worker}"}}'
                assert f"{follower} 1.0" in metrics
            assert metrics.count("# TYPE node_registry_subscribers gauge") == 1
            assert await registry.parent.stop(signal.SIGTERM) == 0
            for client in clients.values():
                assert (await client.wait_for_close())[0] == 1012
        assert not any(map(is_running, workers))


async def test_a_killed_worker_is_replaced_while_the_port_stays_open(database_url: URL) -> None:
    async with run_pool(database_url) as registry:
        killed, spared = registry.workers()
        answers = Counter[str]()
        replaced = asyncio.Event()

        async def keep_asking() -> None:
            while not replaced.is_set():
                try:
                    async with httpx.AsyncClient(timeout=SECONDS, verify=NO_TLS) as http:
                        response = await http.post(registry.url, json={"query": "{ __typename }"})
                        answers[str(response.status_code)] += 1
                except (httpx.ReadError, httpx.RemoteProtocolError):
                    answers["cut"] += 1  # requests that the killed worker was serving

        asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
        await wait_until(lambda: answers["200"] > 20, seconds=SECONDS)
        killed.kill()
        died = await registry.parent.wait_for_line(r"worker\.ended.* pid=(\d+)")
        served = await registry.parent.wait_for_line(r"worker\.started.* pid=(\d+)")
        replaced.set()
        await asyncio.gather(*asking)
        assert set(answers) <= {"200", "cut"}
        assert int(died.group(1)) == killed.pid
        assert {worker.pid for worker in registry.workers()} == {spared.pid, int(served.group(1))}
        async with connect_to_each_worker(registry) as clients:
            assert set(clients) == {spared.pid, int(served.group(1))}


async def test_a_signal_to_all_processes_drains_and_a_second_one_stops_at_once(
    database_url: URL,
) -> None:
    async with run_pool(database_url, NODE_REGISTRY_DRAIN_SECONDS="300") as registry:
        workers = registry.workers()
        async with connect_to_each_worker(registry) as clients:
            for process in (*workers, psutil.Process(registry.parent.process.pid)):
                process.terminate()
            await wait_until(lambda: refuses_connections(registry.port), seconds=SECONDS)
            for client in clients.values():
                await client.send({"type": "ping"})
                assert (await client.receive())["type"] == "pong"
            assert await registry.parent.stop(signal.SIGTERM) == 0
        assert not any(map(is_running, workers))


async def test_the_workers_of_a_killed_parent_close_the_port_at_once_and_exit(
    database_url: URL,
) -> None:
    async with run_pool(database_url, NODE_REGISTRY_DRAIN_SECONDS="0.3") as registry:
        workers = registry.workers()
        async with connect_to_each_worker(registry):
            registry.parent.process.kill()
            await wait_until(lambda: refuses_connections(registry.port), seconds=SECONDS)
            await wait_until(lambda: not any(map(is_running, workers)), seconds=SECONDS)


async def test_the_embedded_database_is_started_once_and_ctrl_c_leaves_no_process(
    data_dir: Path,
) -> None:
    settings = FAST | {
        "NODE_REGISTRY_DATA_DIR": str(data_dir),
        "NODE_REGISTRY_WORKERS": "2",
    }
    async with run_program(*SERVE[:2], **settings) as parent:
        registry = Registry(parent, (await parent.wait_for_line(r"GraphQL +(\S+)")).group(1))
        workers = registry.workers()
        assert len(workers) == 2
        await query_until_answered(registry.url, REGISTER, input=NODE | {"nodeId": "a"})
        with pytest.raises(OSError, match="ddress already in use"):
            listen(Settings(http_port=registry.port))
        assert await parent.stop(signal.SIGINT) == 0
        assert not any(map(is_running, workers))
    assert find_processes(data_dir) == []


@asynccontextmanager
async def role_with_one_connection(database_url: URL) -> AsyncIterator[URL]:
    """Yield the URL of a role with too few connections to serve, but enough to check the schema."""
    name, password = f"role_{secrets.token_hex(6)}", secrets.token_hex(6)
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        owner = await connection.scalar(text("SELECT current_user"))
        limited = f"LOGIN PASSWORD '{password}' CONNECTION LIMIT 1 IN ROLE {owner}"
        await connection.execute(text(f"CREATE ROLE {name} {limited}"))
        try:
            yield database_url.set(username=name, password=password)
        finally:
            await connection.execute(text(f"DROP ROLE {name}"))
    await engine.dispose()


async def test_a_worker_that_cannot_start_stops_the_parent_with_one_line(database_url: URL) -> None:
    async with role_with_one_connection(database_url) as url:
        address = url.render_as_string(hide_password=False)
        settings = {"NODE_REGISTRY_DATABASE_URL": address, "NODE_REGISTRY_LOG_LEVEL": "error"}
        async with run_program(*SERVE, **FAST, **settings) as parent:
            output, _ = await parent.process.communicate()
            assert parent.process.returncode == 1
    assert output.decode().splitlines() == [
        "node-registry: a worker cannot start: the registry cannot reach its database at the moment"
    ]


@pytest.mark.parametrize("count", [0, 65])
def test_a_worker_count_out_of_range_is_rejected(count: int) -> None:
    with pytest.raises(ConfigurationError, match="NODE_REGISTRY_WORKERS"):
        load_settings(workers=count)


MakePool = Callable[[str], WorkerPool]


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MakePool]:
    """Yield a function that returns a pool whose workers run a Python script."""
    monkeypatch.chdir(tmp_path)
    with listen(Settings(http_port=0)) as listening:

        def make(script: str) -> WorkerPool:
            monkeypatch.setattr(
                "graph.server.worker_pool._COMMAND", (sys.executable, "-S", "-c", script)
            )
            return WorkerPool(
                [listening],
                {},
                stop_seconds=0.1,
                on_serving=lambda: None,
                make_limit=partial(RestartLimit, longest_delay_seconds=0.01),
            )

        yield make


def take_events(logged: list[EventDict], event: str) -> list[EventDict]:
    """Remove and return the entries of an event, whose errors would fail the test."""
    entries = [entry for entry in logged if entry["event"] == event]
    logged[:] = [entry for entry in logged if entry["event"] != event]
    return entries


async def test_a_worker_that_repeatedly_fails_to_restart_stops_the_parent(
    make_pool: MakePool, logged: list[EventDict]
) -> None:
    script = """
import pathlib
pathlib.Path("lives").open("a").write("x")
print("ready" if pathlib.Path("lives").read_text() == "x" else "no memory")
"""
    async with asyncio.timeout(SECONDS):
        with pytest.raises(WorkerFailed, match=re.escape("a worker cannot start: no memory")):
            await make_pool(script).run()
    assert [entry["end"] for entry in take_events(logged, "worker.ended")] == [
        "it ended with status 0",
        *["no memory"] * 6,
    ]


async def test_a_worker_that_repeatedly_ends_soon_after_it_is_ready_stops_the_parent(
    make_pool: MakePool, logged: list[EventDict]
) -> None:
    script = """
import os
os.write(1, b"ready\\n" + b"no memory \\xff" * 100_000)
"""
    async with asyncio.timeout(SECONDS):
        with pytest.raises(WorkerFailed, match="a worker ended 8 times soon after its start: no m"):
            await make_pool(script).run()
    ends = [entry["end"] for entry in take_events(logged, "worker.ended")]
    assert len(ends) == 7
    assert all(len(end) <= 4096 for end in ends)


async def test_a_crash_loop_ends_the_command_with_one_line(
    database_url: URL, tmp_path: Path
) -> None:
    """Each worker says that it is ready and ends; the parent restarts it without a delay."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys
if "graph.server.worker" in sys.orig_argv:
    print("ready", flush=True)
    raise SystemExit(3)
from db.core.restart_limit import RestartLimit
record_run = RestartLimit.record_run
RestartLimit.record_run = lambda *run: None if record_run(*run) is None else 0.0
"""
    )
    address = database_url.render_as_string(hide_password=False)
    settings = {"NODE_REGISTRY_DATABASE_URL": address, "PYTHONPATH": str(tmp_path)}
    async with run_program(*SERVE, **FAST, **settings) as parent:
        async with asyncio.timeout(SECONDS):
            output, _ = await parent.process.communicate()
        assert parent.process.returncode == 1
    *_, last = output.decode().splitlines()
    assert last.startswith("node-registry: a worker ended 8 times soon after its start: ")


async def test_a_worker_that_does_not_stop_in_time_is_killed(
    make_pool: MakePool, logged: list[EventDict]
) -> None:
    script = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""
    pool = make_pool(script)
    async with asyncio.timeout(SECONDS):
        running_workers = asyncio.create_task(pool.run())
        await wait_until(
            lambda: any(entry["event"] == "worker.started" for entry in logged), seconds=SECONDS
        )
        pool.stop()
        await running_workers
    assert len(take_events(logged, "worker.killed")) == 1
