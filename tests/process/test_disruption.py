"""No status change is lost or repeated while connections are cut and processes killed.

The servers and PostgreSQL are real, and commits are synced to disk. With --thorough there are a
thousand disconnects; -s shows the counts.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL
from websockets.exceptions import WebSocketException

from agent.follow import follow_status_changes
from agent.pace import Clock
from agent.replies import NodeStatusChanged, ResyncRequired
from db.core.database import Database
from db.core.errors import Unavailable
from db.core.migrate import migrate
from db.embedded.server import run_embedded_postgres
from db.retention import partitions
from tests.support.api import CHANGES
from tests.support.clusters import temporary_folder
from tests.support.fleet import fetch_rows, make_report, record, register
from tests.support.live_server import NO_TLS
from tests.support.registry_process import Server, find_free_port
from tests.support.tcp_proxy import Proxy, run_proxy
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1800)

SECONDS = 60
SEED = 20_251
SHARES = {"cut": 0.66, "unlisten": 0.24, "kill": 0.06, "restart": 0.04}
ONLY_GPU = {"labels": {"any": ["gpu"]}}
FAST_CLOCK = Clock(uniform=lambda _low, _high: 0.02)
MAINTENANCE_NODES = ["maintained-0", "maintained-1"]
HEARTBEAT_NODES = [f"beating-{number}" for number in range(6)]

MAINTAIN = """
mutation Maintain($input: SetMaintenanceInput!) { setMaintenance(input: $input) { node { id } } }
"""
UNLISTEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'node-registry-listen'
"""
CHANGE_LOG = """
SELECT revision, 'gpu' = ANY (n.labels), note
FROM status_changes c JOIN nodes n ON n.id = c.node_id ORDER BY revision
"""


@dataclass
class Postgres:
    """An embedded PostgreSQL, which its supervisor restarts whenever it ends."""

    url: URL
    folder: Path

    @property
    def pid(self) -> int:
        """The pid of the postmaster, or 0 while there is none."""
        with suppress(OSError, ValueError, IndexError):  # the file may be half written
            return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])
        return 0

    async def stop(self, number: signal.Signals) -> None:
        """Send a signal and wait for the restart: SIGINT is a fast shutdown, SIGQUIT a crash."""
        stopped_pid = self.pid
        os.kill(stopped_pid, number)
        await wait_until(lambda: self.pid not in {0, stopped_pid}, seconds=SECONDS)
        database = Database(self.url)
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(Unavailable):
                    await database.ping()
                    break
                await asyncio.sleep(0.02)
        await database.close()


@asynccontextmanager
async def run_durable_postgres(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Postgres]:
    monkeypatch.setattr("db.embedded.server._SUPERVISE_SECONDS", 0.02)
    with temporary_folder() as folder:
        async with run_embedded_postgres(folder) as url:
            database = Database(url)
            await migrate(database.engine)
            async with database.write() as session:
                await partitions.make_day_partitions(session)
            await database.close()
            yield Postgres(url, folder)


@dataclass
class RestartedServer(Server):
    """A server that is restarted whenever it ends, as systemd does it."""

    starts: int = 0

    async def run_and_restart(self) -> None:
        try:
            while True:
                await self.start()
                self.starts += 1
                assert self.process is not None
                await self.process.wait()
                await asyncio.sleep(0.02)
        finally:
            await self.kill()

    async def read_health(self) -> dict[str, Any]:
        """Return the health of the server once it answers; it may be starting or killed again."""
        async with asyncio.timeout(SECONDS), httpx.AsyncClient(timeout=1, verify=NO_TLS) as http:
            while True:
                with suppress(httpx.TransportError):
                    health: dict[str, Any] = (await http.get(f"{self.url}/health")).json()
                    return health
                await asyncio.sleep(0.02)

    async def kill_and_wait_for_restart(self) -> None:
        await self.read_health()
        starts = self.starts
        assert self.process is not None
        with suppress(ProcessLookupError):  # without its database, it may have ended by itself
            self.process.kill()
        await wait_until(lambda: self.starts > starts, seconds=SECONDS)


@dataclass
class Reader:
    """A subscriber, with the revisions it has received, in order and with repetitions."""

    proxies: Sequence[Proxy]
    revisions: list[int] = field(default_factory=list)
    count_at_cut: int = -1

    @property
    def after(self) -> int:
        return self.revisions[-1] if self.revisions else 0

    async def follow(self, node_filter: dict[str, Any] | None = None) -> None:
        """Follow the changes with the Python client."""
        [proxy] = self.proxies
        events = follow_status_changes(
            proxy.url, after=0, node_filter=node_filter, clock=FAST_CLOCK
        )
        async with aclosing(events):
            async for event in events:
                assert not isinstance(event, ResyncRequired), event
                if isinstance(event, NodeStatusChanged):
                    self.revisions.append(event.revision)

    async def alternate(self, chance: random.Random) -> None:
        """Follow the changes from the two servers in turn, without dropping repeated revisions."""
        turn = 0
        while True:
            turn += 1
            proxy = self.proxies[turn % len(self.proxies)]
            with suppress(OSError, TimeoutError, WebSocketException):
                async with connect(proxy.url.replace("http", "ws", 1)) as client:
                    await client.subscribe("1", CHANGES, after=str(self.after))
                    target = len(self.revisions) + chance.randint(1, 500)
                    while len(self.revisions) < target:
                        message = await client.receive()
                        if message["type"] == "error":
                            [error] = message["payload"]
                            assert error["extensions"]["code"] == "UNAVAILABLE", error
                            break
                        self.record_event(message["payload"]["data"]["nodeStatusChanges"])
                    # A closing handshake would wait behind all the messages that are not read.
                    client.socket.transport.abort()
            await asyncio.sleep(0.01)

    def record_event(self, event: dict[str, Any]) -> None:
        assert event["__typename"] != "ResyncRequired", event
        if event["__typename"] == "NodeStatusChanged":
            self.revisions.append(int(event["change"]["revision"]))


@dataclass
class Writer:
    """Makes changes without pause until `stopping` is set, and retries each until it succeeds."""

    acknowledged: list[str] = field(default_factory=list)
    retries: int = 0
    stopping: bool = False

    async def toggle_maintenance(self, server: RestartedServer, node_id: str) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=5) as http:
            while not self.stopping:
                note = f"{node_id} {len(self.acknowledged)}"
                enabled = len(self.acknowledged) % 2 == 0
                change = {"nodeId": node_id, "enabled": enabled, "note": note}
                while not await self.try_request(
                    http, {"query": MAINTAIN, "variables": {"input": change}}
                ):
                    self.retries += 1
                    await asyncio.sleep(0.02)
                self.acknowledged.append(note)

    async def try_request(self, http: httpx.AsyncClient, request: dict[str, Any]) -> bool:
        try:
            body = (await http.post("/graphql", json=request)).json()
        except httpx.TransportError:
            return False
        for error in body.get("errors", ()):
            assert error["extensions"]["code"] == "UNAVAILABLE", error
        return "errors" not in body

    async def send_heartbeats(self, database: Database) -> None:
        sequence = 0
        while not self.stopping:
            sequence += 1
            degraded = sequence % 2 == 1
            reports = [
                make_report(node_id, sequence, degraded=degraded) for node_id in HEARTBEAT_NODES
            ]
            while True:
                with suppress(Unavailable):
                    await record(database, *reports)
                    break
                self.retries += 1
                await asyncio.sleep(0.02)


@dataclass
class Havoc:
    """The ways to disconnect; each waits until there is something to disconnect."""

    chance: random.Random
    postgres: Postgres
    database: Database
    servers: Sequence[RestartedServer]
    readers: Sequence[Reader]

    async def cut(self) -> None:
        """Cut the connection of a reader that has received a change since its last cut."""
        reader = self.chance.choice(self.readers)
        await wait_until(
            lambda: (
                len(reader.revisions) > reader.count_at_cut
                and any(proxy.writers for proxy in reader.proxies)
            ),
            seconds=SECONDS,
        )
        reader.count_at_cut = len(reader.revisions)
        for proxy in reader.proxies:
            proxy.cut()

    async def unlisten(self) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(Unavailable):
                    if await fetch_rows(self.database, UNLISTEN):
                        return
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        await self.chance.choice(self.servers).kill_and_wait_for_restart()

    async def restart(self) -> None:
        await self.postgres.stop(self.chance.choice([signal.SIGINT, signal.SIGQUIT]))


async def run_until_the_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until the first of them ends; raise the error of any that fails before."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    assert outcomes[0] is None


async def test_every_reader_receives_each_change_once_and_in_order_through_all_disconnects(
    monkeypatch: pytest.MonkeyPatch, *, thorough: bool
) -> None:
    started_at, chance = time.monotonic(), random.Random(SEED)  # noqa: S311  # the same each time
    count = 1000 if thorough else 50
    disconnects = [
        disconnect for disconnect, share in SHARES.items() for _ in range(round(share * count))
    ]
    chance.shuffle(disconnects)
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(run_durable_postgres(monkeypatch))
        database = Database(postgres.url)
        stack.push_async_callback(database.close)
        for number, node_id in enumerate([*HEARTBEAT_NODES, *MAINTENANCE_NODES]):
            await register(database, node_id, labels=["gpu"] if number % 2 else [])
        address = postgres.url.render_as_string(hide_password=False)
        servers = [
            RestartedServer(find_free_port(), {"NODE_REGISTRY_DATABASE_URL": address})
            for _ in range(2)
        ]
        proxies = [await stack.enter_async_context(run_proxy(server.url)) for server in servers * 2]
        readers = [Reader(proxies[:1]), Reader(proxies[1:2]), Reader(proxies[2:])]
        writers = [Writer() for _ in range(3)]
        havoc = Havoc(chance, postgres, database, servers, readers)
        logged: list[tuple[Any, ...]] = []

        async def disrupt() -> None:
            writer_tasks = [
                asyncio.create_task(
                    writers[0].toggle_maintenance(servers[0], MAINTENANCE_NODES[0])
                ),
                asyncio.create_task(
                    writers[1].toggle_maintenance(servers[1], MAINTENANCE_NODES[1])
                ),
                asyncio.create_task(writers[2].send_heartbeats(database)),
            ]
            for task in writer_tasks:
                stack.callback(task.cancel)
            for disconnect in disconnects:
                await getattr(havoc, disconnect)()
            for writer in writers:
                writer.stopping = True
            await asyncio.gather(*writer_tasks)
            logged.extend(await fetch_rows(database, CHANGE_LOG))
            newest, newest_gpu = logged[-1][0], max(row[0] for row in logged if row[1])
            await wait_until(
                lambda: min(readers[0].after, readers[2].after) >= newest, seconds=SECONDS
            )
            await wait_until(lambda: readers[1].after >= newest_gpu, seconds=SECONDS)
            for server in servers:
                assert (await server.read_health())["failed_tasks"] == []

        await run_until_the_first_ends(
            disrupt(),
            *(server.run_and_restart() for server in servers),
            readers[0].follow(),
            readers[1].follow(ONLY_GPU),
            readers[2].alternate(random.Random(SEED)),  # noqa: S311  # the same each time
        )
    # The sweep may have appended changes since the log was read: silent nodes become overdue.
    received = [
        [revision for revision in reader.revisions if revision <= len(logged)] for reader in readers
    ]
    log_revisions = [revision for revision, _, _ in logged]
    assert log_revisions == list(range(1, len(log_revisions) + 1))
    assert received[0] == received[2] == log_revisions
    assert received[1] == [revision for revision, has_gpu, _ in logged if has_gpu]
    acknowledged = {note for writer in writers for note in writer.acknowledged}
    assert acknowledged <= {note for _, _, note in logged}
    assert len(log_revisions) > 10 * count
    sys.stdout.write(
        f"\n{len(disconnects)} disconnects ({dict(Counter(disconnects))}),"
        f" {len(log_revisions)} revisions,"
        f" {len(acknowledged)} mutations acknowledged, {time.monotonic() - started_at:.0f} s\n"
    )
