"""Whatever breaks, as often as it may: a reader that resumes sees each change once, in order."""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from api import MAINTENANCE
from fleet import register
from registry_process import Server, free_port
from sqlalchemy import URL, text
from tcp_proxy import Proxy, proxy

from agent.follow import follow_status_changes
from agent.pace import Clock
from agent.replies import NodeStatusChanged, ResyncRequired
from db import changes, nodes, partitions
from db.changes import Transition
from db.database import Database
from db.embedded import embedded_postgres
from db.errors import Unavailable
from db.migrate import migrate
from db.values import NodeStatus, StatusReason

HASTY = Clock(uniform=lambda _low, _high: 0.02)
SECONDS = 60
NODES = [f"n{number}" for number in range(20)]

# Of fifty disconnects; those of processes take a second or two each.
MIX = {"socket cut": 24, "LISTEN ended": 18, "server killed": 6, "PostgreSQL killed": 2}


@dataclass
class Reader:
    """What one resuming reader was told."""

    begin: int
    seen: list[int] = field(default_factory=list)
    position: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, urls: list[str], **given: Any) -> None:
        """Through each address in turn, to the next after some hundred changes; for ever."""
        self.position = self.begin
        turn = 0
        while True:
            events = follow_status_changes(
                urls[turn % len(urls)], after=self.position, clock=HASTY, **given
            )
            turn += 1
            async with aclosing(events):
                async for event in events:
                    assert not isinstance(event, ResyncRequired), event
                    if isinstance(event, NodeStatusChanged):
                        self.seen.append(event.revision)
                    self.position = event.revision
                    if len(urls) > 1 and event.revision % 100 == 0:
                        break


@asynccontextmanager
async def postgres() -> AsyncIterator[tuple[URL, Path]]:
    """With fsync: what was acknowledged survives. It is started again when it is killed."""
    with tempfile.TemporaryDirectory(prefix="node-registry-test-") as folder:
        async with embedded_postgres(Path(folder)) as url:
            yield url, Path(folder) / "postgres" / "postmaster.pid"


async def insist(work: Any) -> Any:
    """Until the database can do it."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                return await work()
            except Unavailable:
                await asyncio.sleep(0.02)


async def write(database: Database, chance: random.Random) -> None:
    """Changes straight in the database, a few at once, for ever."""

    async def some() -> None:
        async with database.write() as session:
            chosen = sorted(chance.sample(NODES, chance.randint(1, 5)))
            locked = [await nodes.locked(session, node_id) for node_id in chosen]
            await changes.apply(
                session,
                [
                    Transition(n.id, n.status, NodeStatus.ONLINE, StatusReason.HEARTBEAT)
                    for n in sorted(locked, key=lambda node: node.id)
                ],
            )

    while True:
        await insist(some)
        await asyncio.sleep(0.005)


async def operate(servers: list[Server]) -> None:
    """Changes through both servers, for ever, whether they answer or not."""
    async with httpx.AsyncClient(timeout=5) as http:
        for number in range(1_000_000):
            maintained = {"nodeId": NODES[number % 3], "enabled": number % 2 == 0}
            with suppress(httpx.TransportError):
                await http.post(
                    f"{servers[number % 2].url}/graphql",
                    json={"query": MAINTENANCE, "variables": {"input": maintained}},
                )
            await asyncio.sleep(0.01)


@dataclass
class Disruption:
    servers: list[Server]
    proxies: list[Proxy]
    database: Database
    postmaster: Path
    done: Counter[str] = field(default_factory=Counter)

    async def commit(self, kind: str, chance: random.Random) -> None:
        async with asyncio.timeout(SECONDS):
            while not await self._disrupt(kind, chance):
                await asyncio.sleep(0.01)  # what is to be cut is cut already
        self.done[kind] += 1

    async def _disrupt(self, kind: str, chance: random.Random) -> int:
        match kind:
            case "socket cut":
                return chance.choice(self.proxies).cut()
            case "LISTEN ended":
                return int(await insist(self._end_listening))
            case "server killed":
                server = chance.choice(self.servers)
                await server.kill()
                await server.start()
                await server.answers()
            case "PostgreSQL killed":
                pid = int(self.postmaster.read_text().split()[0])
                number = chance.choice([signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
                os.kill(pid, number)
        return 1

    async def _end_listening(self) -> int:
        async with self.database.write() as session:
            ended = await session.scalar(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'node-registry-listen'"
                )
            )
        return int(ended or 0)


async def matching(database: Database, behind: int, node_ids: list[str]) -> list[int]:
    async with database.read() as session:
        rows = await session.scalars(
            text(
                "SELECT revision FROM status_changes c JOIN nodes n ON n.id = c.node_id"
                " WHERE revision > :behind AND n.node_id = ANY(:node_ids) ORDER BY revision"
            ),
            {"behind": behind, "node_ids": node_ids},
        )
        return list(rows)


@pytest.mark.timeout(3600)
async def test_a_reader_that_resumes_sees_each_change_once_and_in_order(*, thorough: bool) -> None:
    times = 20 if thorough else 1
    chance = random.Random(7)  # noqa: S311  # the same each time
    kinds = [kind for kind, count in MIX.items() for _ in range(count * times)]
    chance.shuffle(kinds)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        url, postmaster = await stack.enter_async_context(postgres())
        database = Database(url, statement_timeout_seconds=5)
        stack.push_async_callback(database.close)
        await migrate(database.engine)
        async with database.write() as session:
            await partitions.make_ahead(session)
        for node_id in NODES:
            await register(database, node_id)
        environment = {
            "NODE_REGISTRY_DATABASE_URL": url.render_as_string(hide_password=False),
            "NODE_REGISTRY_SWEEP_INTERVAL_SECONDS": "3600",
            "NODE_REGISTRY_BOOKMARK_INTERVAL_SECONDS": "0.5",
        }
        servers = [Server(free_port(), environment) for _ in range(2)]
        for server in servers:
            await server.start()
            stack.push_async_callback(server.kill)
        await asyncio.gather(*(server.answers() for server in servers))
        proxies = [await stack.enter_async_context(proxy(server.url)) for server in servers]
        one, two = (between.url for between in proxies)
        async with database.read() as session:
            begin = await changes.current_revision(session)
        some = NODES[::4]
        readers = {"one": Reader(begin), "some of two": Reader(begin), "both": Reader(begin)}
        tasks = [
            asyncio.create_task(readers["one"].follow([one])),
            asyncio.create_task(
                readers["some of two"].follow([two], node_filter={"nodeIds": some})
            ),
            asyncio.create_task(readers["both"].follow([one, two])),
        ]
        writers = [
            asyncio.create_task(write(database, chance)),
            asyncio.create_task(operate(servers)),
        ]
        disruption = Disruption(servers, proxies, database, postmaster)
        for kind in kinds:
            await disruption.commit(kind, chance)
            await asyncio.sleep(chance.uniform(0, 0.1))
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        last = await insist(lambda: _newest(database))
        async with asyncio.timeout(SECONDS):
            while any(reader.position < last for reader in readers.values()):
                assert not any(task.done() for task in tasks), tasks
                await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A change that was asked for before its writer was stopped may have come after the last.
        seen = {n: [r for r in reader.seen if r <= last] for n, reader in readers.items()}
        assert seen["one"] == list(range(begin + 1, last + 1))
        assert seen["both"] == list(range(begin + 1, last + 1))
        matching_some = await matching(database, begin, some)
        assert seen["some of two"] == [revision for revision in matching_some if revision <= last]
    seconds = time.monotonic() - began
    print(f"{dict(disruption.done)}, revisions {begin + 1} to {last}, {seconds:.0f} s")  # noqa: T201  # for -s
    assert disruption.done.total() == 50 * times
    assert last - begin > 500


async def _newest(database: Database) -> int:
    async with database.read() as session:
        return await changes.current_revision(session)
