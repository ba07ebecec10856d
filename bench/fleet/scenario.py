"""The fleet arrives, beats for a while, and may see its registry killed and started anew."""

import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from sqlalchemy import text

from bench import processes
from bench.fleet.agent_statistics import Phase, Tally
from bench.fleet.simulated_agent import Fates, Member
from bench.fleet.transports import HttpWire, WebSocketWire, Wire
from bench.processes import Server, Stopwatch
from db.core.database import Database

_ARRIVALS_PER_SECOND = 50
_SETTLE_INTERVALS = 2
_RETURN_INTERVALS = 6
_RETURN_SECONDS = 60
_TELL_SECONDS = 30
_LOOK_SECONDS = 0.01

_STATUSES = text("""
SELECT status, count(*) AS nodes FROM nodes
WHERE node_id LIKE 'fleet-%' AND removed_at IS NULL GROUP BY 1 ORDER BY 2 DESC
""")
_TRANSITIONS = text("""
SELECT coalesce(previous_status, 'new') || ' to ' || c.status || ', ' || reason AS what,
       count(*) AS nodes
FROM status_changes c JOIN nodes n ON n.id = c.node_id
WHERE n.node_id LIKE 'fleet-%' GROUP BY 1 ORDER BY 2 DESC
""")


@dataclass(frozen=True, slots=True)
class Terms:
    """`fail` and `sleep` are percent of the nodes a minute; `connections` 0: each its own."""

    nodes: int
    interval: float
    seconds: float
    transport: str
    connections: int
    fail: float
    sleep: float
    restart: bool


@dataclass
class Story:
    """Memory in bytes; `back_seconds` are from the kill, as are `serves_seconds`."""

    phases: list[Phase] = field(default_factory=list)
    bytes_before: int = 0
    later: int = 0
    """So many nodes came after that memory was read."""
    resident: list[tuple[float, int]] = field(default_factory=list)
    """While it was measured: seconds, and the server's memory."""
    serves_seconds: float | None = None
    back_seconds: float | None = None
    missing: int = 0
    failed: int = 0
    slept: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    transitions: dict[str, int] = field(default_factory=dict)


async def tell(terms: Terms) -> Story:
    story = Story()
    gc.disable()  # it would stop all agents at once, as no fleet is stopped
    async with processes.database() as database, AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-", dir=_ram())))
        port = processes.free_port()
        running = await stack.enter_async_context(_Restartable(database, port, terms).running())
        tally = Tally()
        members = _members(terms, port, tally, folder)
        stack.callback(_stop, members)
        await _arrive(terms, members, tally, running.server, story)
        fates = Fates(members, terms.interval)
        striking = asyncio.create_task(fates.strike(terms.fail, terms.sleep))
        stack.push_async_callback(_end, striking)
        await _measure(terms.seconds, tally.begin("steady"), running.server, story)
        if terms.restart:
            await _restart(running, members, tally, terms, story)
        story.failed, story.slept = fates.failed, fates.slept
        await _ask_what_was_seen(database, story)
    return story


class _Restartable:
    """The registry, always on the same port."""

    def __init__(self, database: Database, port: int, terms: Terms) -> None:
        self._database = database
        self._port = port
        self._terms = terms
        self._stack = AsyncExitStack()
        self.server: Server

    @asynccontextmanager
    async def running(self) -> AsyncIterator["_Restartable"]:
        await self._start()
        try:
            yield self
        finally:
            await self._stack.aclose()

    async def kill_and_start(self) -> None:
        self.server.process.kill()
        await self._stack.aclose()
        await self._start()

    async def _start(self) -> None:
        terms = self._terms
        chosen: dict[str, Any] = {
            "heartbeat_min_interval_seconds": terms.interval,
            # So that it is the interval that sets the pace, however large the fleet is.
            "heartbeat_target_rate": max(1000.0, terms.nodes / terms.interval),
            # They have one address, which a fleet has not.
            "max_subscriptions_per_caller": terms.nodes + 1,
            "heartbeats_per_second": 2 * max(1.0, 1 / terms.interval) * terms.nodes,
            "registrations_per_minute": 60 * terms.nodes,
        }
        started = processes.registry(self._database.url, port=self._port, **chosen)
        self.server = await self._stack.enter_async_context(started)


def _ram() -> str | None:
    """The files of ten thousand agents are not what is measured."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # a folder of its own in it


def _members(terms: Terms, port: int, tally: Tally, folder: Path) -> list[Member]:
    def wire() -> Wire:
        return HttpWire(port) if terms.transport == "http" else WebSocketWire(port)

    shared = [wire() for _ in range(terms.connections)]
    members = []
    for number in range(terms.nodes):
        node_id = f"fleet-{number:05}"
        own = shared[number % len(shared)] if shared else wire()
        members.append(Member(node_id, own, tally, folder / node_id))
    return members


async def _arrive(
    terms: Terms, members: Sequence[Member], tally: Tally, server: Server, story: Story
) -> None:
    """First a tenth of them, so that what is paid once is no memory of a node."""
    story.phases.append(tally.begin("arrival"))
    early = len(members) // 10
    tally.miss({member.node_id for member in members})
    await _start(members[:early])
    await asyncio.sleep(_SETTLE_INTERVALS * terms.interval)
    before = server.resident_bytes
    await _start(members[early:])
    for _ in range(_SETTLE_INTERVALS):
        if missing := await tally.all_back(_patience(terms)):
            click.echo(f"{missing} nodes were not heard", err=True)
        tally.miss({member.node_id for member in members})
    await asyncio.sleep(terms.interval)
    story.bytes_before, story.later = before, len(members) - early


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _stop(members: Sequence[Member]) -> None:
    for member in members:
        member.stop()


async def _start(members: Sequence[Member]) -> None:
    for member in members:
        member.start()
        await asyncio.sleep(1 / _ARRIVALS_PER_SECOND)


def _patience(terms: Terms) -> float:
    return max(_RETURN_SECONDS, _RETURN_INTERVALS * terms.interval)


async def _measure(seconds: float, phase: Phase, server: Server, story: Story) -> None:
    story.phases.append(phase)
    began = last = time.perf_counter()
    whole = part = Stopwatch(server)
    heard = 0
    watching = asyncio.create_task(_watch_lag(phase))
    while (left := began + seconds - time.perf_counter()) > 0:
        await asyncio.sleep(min(left, _TELL_SECONDS))
        now, resident = time.perf_counter(), server.resident_bytes
        click.echo(
            f"{now - began:6.0f} s: {resident / 1e6:.1f} MB,"
            f" {(len(phase.latencies) - heard) / (now - last):.0f} answers/s,"
            f" {part.read().server:.2f} cores",
            err=True,
        )
        story.resident.append((now - began, resident))
        last, heard, part = now, len(phase.latencies), Stopwatch(server)
    watching.cancel()
    phase.seconds = last - began
    phase.busy = whole.read()


async def _watch_lag(phase: Phase) -> None:
    """What the load is late by itself is no delay of the server's."""
    while True:
        due = time.perf_counter() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        phase.lags.append(time.perf_counter() - due)


async def _restart(
    running: _Restartable, members: Sequence[Member], tally: Tally, terms: Terms, story: Story
) -> None:
    phase = tally.begin("restart")
    story.phases.append(phase)
    tally.miss({member.node_id for member in members if member.there})
    killed = time.perf_counter()
    back = asyncio.create_task(tally.all_back(_patience(terms)))
    await running.kill_and_start()
    story.serves_seconds = time.perf_counter() - killed
    story.missing = await back
    story.back_seconds = time.perf_counter() - killed
    await asyncio.sleep(_SETTLE_INTERVALS * terms.interval)
    await _measure(terms.seconds / 2, tally.begin("after the restart"), running.server, story)


async def _ask_what_was_seen(database: Database, story: Story) -> None:
    async with database.read() as session:
        story.statuses = {row.status: row.nodes for row in await session.execute(_STATUSES)}
        story.transitions = {row.what: row.nodes for row in await session.execute(_TRANSITIONS)}
