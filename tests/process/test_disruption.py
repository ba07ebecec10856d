"""Whatever is cut, killed and restarted while changes are made without pause: none lost or doubled.

Real servers on a real PostgreSQL that syncs its commits to disk. With --thorough, and -s to see
what it comes to, a thousand disconnects.
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
HASTY = Clock(uniform=lambda _low, _high: 0.02)
MAINTAINED = ["maintained-0", "maintained-1"]
BEATING = [f"beating-{number}" for number in range(6)]

MAINTAIN = """
mutation Maintain($input: SetMaintenanceInput!) { setMaintenance(input: $input) { node { id } } }
"""
UNLISTEN = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'node-registry-listen'
"""
IN_THE_LOG = """
SELECT revision, 'gpu' = ANY (n.labels), note
FROM status_changes c JOIN nodes n ON n.id = c.node_id ORDER BY revision
"""


@dataclass
class Postgres:
    """Started again as soon as it has ended, by what embeds it."""

    url: URL
    folder: Path

    @property
    def pid(self) -> int:
        """0 when there is none."""
        with suppress(OSError, ValueError, IndexError):  # it may just be written
            return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])
        return 0

    async def end(self, how: signal.Signals) -> None:
        """SIGINT ends it fast, SIGQUIT at once: it then recovers from its log."""
        ended = self.pid
        os.kill(ended, how)
        await wait_until(lambda: self.pid not in {0, ended}, seconds=SECONDS)
        database = Database(self.url)
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(Unavailable):
                    await database.ping()
                    break
                await asyncio.sleep(0.02)
        await database.close()


@asynccontextmanager
async def durable_postgres(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Postgres]:
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
class KeptServer(Server):
    """Started again whenever it has ended, as systemd does."""

    starts: int = 0

    async def keep(self) -> None:
        try:
            while True:
                await self.start()
                self.starts += 1
                assert self.process is not None
                await self.process.wait()
                await asyncio.sleep(0.02)
        finally:
            await self.kill()

    async def health(self) -> dict[str, Any]:
        """As soon as it answers: it may be starting, or be killed once more."""
        async with asyncio.timeout(SECONDS), httpx.AsyncClient(timeout=1, verify=NO_TLS) as http:
            while True:
                with suppress(httpx.TransportError):
                    health: dict[str, Any] = (await http.get(f"{self.url}/health")).json()
                    return health
                await asyncio.sleep(0.02)

    async def die(self) -> None:
        await self.health()
        starts = self.starts
        assert self.process is not None
        with suppress(ProcessLookupError):  # it has just ended, for it found no database
            self.process.kill()
        await wait_until(lambda: self.starts > starts, seconds=SECONDS)


@dataclass
class Reader:
    """What it was told, in the order and as often as it was told."""

    wires: Sequence[Proxy]
    told: list[int] = field(default_factory=list)
    told_at_cut: int = -1

    @property
    def after(self) -> int:
        return self.told[-1] if self.told else 0

    async def follow(self, node_filter: dict[str, Any] | None = None) -> None:
        """As a router or dashboard in Python does."""
        [only] = self.wires
        events = follow_status_changes(only.url, after=0, node_filter=node_filter, clock=HASTY)
        async with aclosing(events):
            async for event in events:
                assert not isinstance(event, ResyncRequired), event
                if isinstance(event, NodeStatusChanged):
                    self.told.append(event.revision)

    async def alternate(self, chance: random.Random) -> None:
        """Goes from one server to the other, and hides nothing that it is told twice."""
        turn = 0
        while True:
            turn += 1
            between = self.wires[turn % len(self.wires)]
            with suppress(OSError, TimeoutError, WebSocketException):
                async with connect(between.url.replace("http", "ws", 1)) as client:
                    await client.subscribe("1", CHANGES, after=str(self.after))
                    enough = len(self.told) + chance.randint(1, 500)
                    while len(self.told) < enough:
                        message = await client.receive()
                        if message["type"] == "error":
                            [error] = message["payload"]
                            assert error["extensions"]["code"] == "UNAVAILABLE", error
                            break
                        self.hear(message["payload"]["data"]["nodeStatusChanges"])
                    # A goodbye would wait behind all that was sent and will not be read.
                    client.socket.transport.abort()
            await asyncio.sleep(0.01)

    def hear(self, event: dict[str, Any]) -> None:
        assert event["__typename"] != "ResyncRequired", event
        if event["__typename"] == "NodeStatusChanged":
            self.told.append(int(event["change"]["revision"]))


@dataclass
class Writer:
    """Makes changes without pause until it is to stop; each is tried again until it succeeds."""

    acknowledged: list[str] = field(default_factory=list)
    retries: int = 0
    stopping: bool = False

    async def maintain(self, server: KeptServer, node_id: str) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=5) as http:
            while not self.stopping:
                note = f"{node_id} {len(self.acknowledged)}"
                enabled = len(self.acknowledged) % 2 == 0
                change = {"nodeId": node_id, "enabled": enabled, "note": note}
                while not await self.is_done(
                    http, {"query": MAINTAIN, "variables": {"input": change}}
                ):
                    self.retries += 1
                    await asyncio.sleep(0.02)
                self.acknowledged.append(note)

    async def is_done(self, http: httpx.AsyncClient, request: dict[str, Any]) -> bool:
        try:
            body = (await http.post("/graphql", json=request)).json()
        except httpx.TransportError:
            return False
        for error in body.get("errors", ()):
            assert error["extensions"]["code"] == "UNAVAILABLE", error
        return "errors" not in body

    async def beat(self, database: Database) -> None:
        sequence = 0
        while not self.stopping:
            sequence += 1
            degraded = sequence % 2 == 1
            reports = [make_report(node_id, sequence, degraded=degraded) for node_id in BEATING]
            while True:
                with suppress(Unavailable):
                    await record(database, *reports)
                    break
                self.retries += 1
                await asyncio.sleep(0.02)


@dataclass
class Havoc:
    """Each way to disconnect waits until there is something to disconnect."""

    chance: random.Random
    postgres: Postgres
    database: Database
    servers: Sequence[KeptServer]
    readers: Sequence[Reader]

    async def cut(self) -> None:
        """A reader's socket, once it was told something since the last time."""
        reader = self.chance.choice(self.readers)
        await wait_until(
            lambda: (
                len(reader.told) > reader.told_at_cut
                and any(between.carried for between in reader.wires)
            ),
            seconds=SECONDS,
        )
        reader.told_at_cut = len(reader.told)
        for between in reader.wires:
            between.cut()

    async def unlisten(self) -> None:
        async with asyncio.timeout(SECONDS):
            while True:
                with suppress(Unavailable):
                    if await fetch_rows(self.database, UNLISTEN):
                        return
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        await self.chance.choice(self.servers).die()

    async def restart(self) -> None:
        await self.postgres.end(self.chance.choice([signal.SIGINT, signal.SIGQUIT]))


async def ended_with_the_first(*work: Coroutine[Any, Any, None]) -> None:
    """The first is what all of it is for: the others fail it, or are cancelled."""
    tasks = [asyncio.create_task(each) for each in work]
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


async def test_every_reader_is_told_each_change_once_and_in_order_through_all_disconnects(
    monkeypatch: pytest.MonkeyPatch, *, thorough: bool
) -> None:
    began, chance = time.monotonic(), random.Random(SEED)  # noqa: S311  # the same each time
    count = 1000 if thorough else 50
    disconnects = [way for way, share in SHARES.items() for _ in range(round(share * count))]
    chance.shuffle(disconnects)
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(durable_postgres(monkeypatch))
        database = Database(postgres.url)
        stack.push_async_callback(database.close)
        for number, node_id in enumerate([*BEATING, *MAINTAINED]):
            await register(database, node_id, labels=["gpu"] if number % 2 else [])
        address = postgres.url.render_as_string(hide_password=False)
        servers = [
            KeptServer(find_free_port(), {"NODE_REGISTRY_DATABASE_URL": address}) for _ in range(2)
        ]
        wires = [await stack.enter_async_context(run_proxy(each.url)) for each in servers * 2]
        readers = [Reader(wires[:1]), Reader(wires[1:2]), Reader(wires[2:])]
        writers = [Writer() for _ in range(3)]
        havoc = Havoc(chance, postgres, database, servers, readers)
        logged: list[tuple[Any, ...]] = []

        async def disrupt() -> None:
            writing = [
                asyncio.create_task(writers[0].maintain(servers[0], MAINTAINED[0])),
                asyncio.create_task(writers[1].maintain(servers[1], MAINTAINED[1])),
                asyncio.create_task(writers[2].beat(database)),
            ]
            for task in writing:
                stack.callback(task.cancel)
            for way in disconnects:
                await getattr(havoc, way)()
            for writer in writers:
                writer.stopping = True
            await asyncio.gather(*writing)
            logged.extend(await fetch_rows(database, IN_THE_LOG))
            newest, newest_gpu = logged[-1][0], max(row[0] for row in logged if row[1])
            await wait_until(
                lambda: min(readers[0].after, readers[2].after) >= newest, seconds=SECONDS
            )
            await wait_until(lambda: readers[1].after >= newest_gpu, seconds=SECONDS)
            for server in servers:
                assert (await server.health())["failed_tasks"] == []

        await ended_with_the_first(
            disrupt(),
            *(server.keep() for server in servers),
            readers[0].follow(),
            readers[1].follow(ONLY_GPU),
            readers[2].alternate(random.Random(SEED)),  # noqa: S311  # the same each time
        )
    # The registry may have gone on meanwhile: whoever is silent is overdue at some time.
    told = [[each for each in reader.told if each <= len(logged)] for reader in readers]
    every = [revision for revision, _, _ in logged]
    assert every == list(range(1, len(every) + 1))
    assert told[0] == told[2] == every
    assert told[1] == [revision for revision, has_gpu, _ in logged if has_gpu]
    acknowledged = {note for writer in writers for note in writer.acknowledged}
    assert acknowledged <= {note for _, _, note in logged}
    assert len(every) > 10 * count
    sys.stdout.write(
        f"\n{len(disconnects)} disconnects ({dict(Counter(disconnects))}), {len(every)} revisions,"
        f" {len(acknowledged)} mutations acknowledged, {time.monotonic() - began:.0f} s\n"
    )
