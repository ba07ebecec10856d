"""A registry that peers attack over a thousand connections before it knows any of them."""

import asyncio
import itertools
import re
import resource
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from graph.server.file_limits import raise_open_file_limit
from tests.support.api import BEAT, REGISTER
from tests.support.commands import run_process
from tests.support.hostile_peers import ATTACKS, Attack, attack_by_many
from tests.support.live_server import NO_TLS
from tests.support.processes import BIN, FAST, Process, run_program
from tests.support.waiting import wait_until

SECONDS = 60
MB = 1_000_000
MAX_GROWTH_MB = 200
FEW_FILES = 400


@dataclass
class Target:
    """A registry that requires authentication, and a client that has a token."""

    process: Process
    http: httpx.AsyncClient

    @property
    def port(self) -> int:
        return self.http.base_url.port or 0

    def measure_mb(self) -> float:
        return float(psutil.Process(self.process.process.pid).memory_info().rss / MB)

    async def execute(self, query: str, **variables: object) -> None:
        response = await self.http.post("/graphql", json={"query": query, "variables": variables})
        assert "errors" not in response.json(), response.text


@asynccontextmanager
async def run_target(data_dir: Path, prefix: str = "") -> AsyncIterator[Target]:
    settings = FAST | {
        "NODE_REGISTRY_DATA_DIR": str(data_dir),
        "NODE_REGISTRY_AUTH": "required",
        "NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "0.01",
    }
    command = f"{prefix} exec {shlex.quote(str(BIN / 'node-registry'))} serve"
    async with run_program("sh", "-c", command, **settings) as process:
        url = (await process.wait_for_line(r"GraphQL +(\S+)/graphql")).group(1)
        _, token, _ = await run_process("token", "create", "--role", "admin", **settings)
        headers = {"authorization": f"Bearer {token.strip()}"}
        async with httpx.AsyncClient(
            base_url=url, headers=headers, verify=NO_TLS, timeout=SECONDS
        ) as http:
            target = Target(process, http)
            node = {"nodeId": "a", "role": "BACKUP", "type": "WORKER", "bootId": "b"}
            await target.execute(REGISTER, input=node)
            yield target


@asynccontextmanager
async def send_heartbeats(target: Target) -> AsyncIterator[None]:
    """Send heartbeats of a known agent during the block; each must be accepted."""

    async def beat() -> None:
        for sequence in itertools.count(1):
            await target.execute(BEAT, input={"nodeId": "a", "bootId": "b", "sequence": sequence})
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    yield
    assert not task.done(), task.exception()
    task.cancel()


@pytest.mark.timeout(300)
async def test_a_thousand_unknown_peers_fill_no_memory_and_delay_no_heartbeat(
    tmp_path: Path, *, thorough: bool
) -> None:
    raise_open_file_limit(3000)
    groups = [[each] for each in ATTACKS.values()] if thorough else [list(ATTACKS.values())]
    async with run_target(tmp_path) as target, send_heartbeats(target):
        before = target.measure_mb()
        for attacks in groups:
            async with attack_by_many(target.port, attacks, 1000) as connections:
                growth = await watch_memory(target, connections, before)
            assert growth < MAX_GROWTH_MB
            assert (await target.http.get("/health")).status_code == 200


async def watch_memory(
    target: Target, connections: list[asyncio.Task[bytes]], before: float
) -> float:
    """Return the growth of the memory in MB while most of the connections are being cut."""
    growth = 0.0
    loop = asyncio.get_running_loop()
    end = loop.time() + 5
    while loop.time() < end and not all(connection.done() for connection in connections):
        growth = max(growth, target.measure_mb() - before)
        await asyncio.sleep(0.05)
    return growth


async def test_an_address_cannot_take_all_open_files(tmp_path: Path) -> None:
    silent = Attack(b"GET / HTTP/1.1\r\n", b"")
    raise_open_file_limit(2 * FEW_FILES)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 2 * FEW_FILES
    async with run_target(tmp_path, f"ulimit -n {FEW_FILES};") as target, send_heartbeats(target):
        process = psutil.Process(target.process.process.pid)
        async with attack_by_many(target.port, [silent], 2 * FEW_FILES) as connections:
            await wait_until(
                lambda: sum(connection.done() for connection in connections) > FEW_FILES,
                seconds=SECONDS,
            )
            assert process.num_fds() < FEW_FILES
            async with httpx.AsyncClient(base_url=target.http.base_url, verify=NO_TLS) as stranger:
                assert (await stranger.get("/health")).status_code == 200
        metrics = (await target.http.get("/metrics")).text
        [cut] = re.findall(r"^node_registry_connections_cut_total (\S+)$", metrics, re.MULTILINE)
        assert float(cut) > FEW_FILES
        await target.process.wait_for_line(r"connections\.limited.*127\.0\.0\.1")
