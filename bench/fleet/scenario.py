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
from bench.fleet.agent_statistics import AgentStatistics, Phase
from bench.fleet.simulated_agent import FaultInjector, SimulatedAgent
from bench.fleet.transports import HttpTransport, Transport, WebSocketTransport
from bench.processes import CpuMeter, Server
from db.core.database import Database

_ARRIVALS_PER_SECOND = 50
_SETTLE_INTERVALS = 2
_RETURN_INTERVALS = 6
_RETURN_SECONDS = 60
_PROGRESS_SECONDS = 30
_LAG_SAMPLE_SECONDS = 0.01

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
class Scenario:
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
class ScenarioResult:
    """Memory in bytes; `back_seconds` are from the kill, as are `serves_seconds`."""

    phases: list[Phase] = field(default_factory=list)
    baseline_bytes: int = 0
    nodes_after_baseline: int = 0
    """So many nodes came after that memory was read."""
    memory_samples: list[tuple[float, int]] = field(default_factory=list)
    """While it was measured: seconds, and the server's memory."""
    seconds_until_served: float | None = None
    seconds_until_all_back: float | None = None
    missing_nodes: int = 0
    failure_count: int = 0
    sleep_count: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    transitions: dict[str, int] = field(default_factory=dict)


async def run_scenario(terms: Scenario) -> ScenarioResult:
    story = ScenarioResult()
    gc.disable()  # it would stop all agents at once, as no fleet is stopped
    async with processes.open_database() as database, AsyncExitStack() as stack:
        folder = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="fleet-", dir=_find_memory_directory())
            )
        )
        port = processes.find_free_port()
        running = await stack.enter_async_context(_RestartableRegistry(database, port, terms).run())
        tally = AgentStatistics()
        members = _create_agents(terms, port, tally, folder)
        stack.callback(_stop_agents, members)
        await _start_fleet(terms, members, tally, running.server, story)
        fates = FaultInjector(members, terms.interval)
        striking = asyncio.create_task(fates.inject_faults(terms.fail, terms.sleep))
        stack.push_async_callback(_cancel, striking)
        await _measure_phase(terms.seconds, tally.begin_phase("steady"), running.server, story)
        if terms.restart:
            await _measure_restart(running, members, tally, terms, story)
        story.failure_count, story.sleep_count = fates.failure_count, fates.sleep_count
        await _read_registry_view(database, story)
    return story


class _RestartableRegistry:
    """The registry, always on the same port."""

    def __init__(self, database: Database, port: int, terms: Scenario) -> None:
        self._database = database
        self._port = port
        self._terms = terms
        self._stack = AsyncExitStack()
        self.server: Server

    @asynccontextmanager
    async def run(self) -> AsyncIterator["_RestartableRegistry"]:
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
        started = processes.run_registry(self._database.url, port=self._port, **chosen)
        self.server = await self._stack.enter_async_context(started)


def _find_memory_directory() -> str | None:
    """The files of ten thousand agents are not what is measured."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # a folder of its own in it


def _create_agents(
    terms: Scenario, port: int, tally: AgentStatistics, folder: Path
) -> list[SimulatedAgent]:
    def wire() -> Transport:
        return HttpTransport(port) if terms.transport == "http" else WebSocketTransport(port)

    shared = [wire() for _ in range(terms.connections)]
    members = []
    for number in range(terms.nodes):
        node_id = f"fleet-{number:05}"
        own = shared[number % len(shared)] if shared else wire()
        members.append(SimulatedAgent(node_id, own, tally, folder / node_id))
    return members


async def _start_fleet(
    terms: Scenario,
    members: Sequence[SimulatedAgent],
    tally: AgentStatistics,
    server: Server,
    story: ScenarioResult,
) -> None:
    """First a tenth of them, so that what is paid once is no memory of a node."""
    story.phases.append(tally.begin_phase("arrival"))
    early = len(members) // 10
    tally.expect_answers({member.node_id for member in members})
    await _start_agents(members[:early])
    await asyncio.sleep(_SETTLE_INTERVALS * terms.interval)
    before = server.resident_bytes
    await _start_agents(members[early:])
    for _ in range(_SETTLE_INTERVALS):
        if missing := await tally.wait_for_answers(_compute_return_timeout(terms)):
            click.echo(f"{missing} nodes were not heard", err=True)
        tally.expect_answers({member.node_id for member in members})
    await asyncio.sleep(terms.interval)
    story.baseline_bytes, story.nodes_after_baseline = before, len(members) - early


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _stop_agents(members: Sequence[SimulatedAgent]) -> None:
    for member in members:
        member.stop()


async def _start_agents(members: Sequence[SimulatedAgent]) -> None:
    for member in members:
        member.start()
        await asyncio.sleep(1 / _ARRIVALS_PER_SECOND)


def _compute_return_timeout(terms: Scenario) -> float:
    return max(_RETURN_SECONDS, _RETURN_INTERVALS * terms.interval)


async def _measure_phase(
    seconds: float, phase: Phase, server: Server, story: ScenarioResult
) -> None:
    story.phases.append(phase)
    began = last = time.perf_counter()
    whole = part = CpuMeter(server)
    heard = 0
    watching = asyncio.create_task(_record_lag(phase))
    while (left := began + seconds - time.perf_counter()) > 0:
        await asyncio.sleep(min(left, _PROGRESS_SECONDS))
        now, resident = time.perf_counter(), server.resident_bytes
        click.echo(
            f"{now - began:6.0f} s: {resident / 1e6:.1f} MB,"
            f" {(len(phase.latencies) - heard) / (now - last):.0f} answers/s,"
            f" {part.read().server:.2f} cores",
            err=True,
        )
        story.memory_samples.append((now - began, resident))
        last, heard, part = now, len(phase.latencies), CpuMeter(server)
    watching.cancel()
    phase.seconds = last - began
    phase.cpu = whole.read()


async def _record_lag(phase: Phase) -> None:
    """What the load is late by itself is no delay of the server's."""
    while True:
        due = time.perf_counter() + _LAG_SAMPLE_SECONDS
        await asyncio.sleep(_LAG_SAMPLE_SECONDS)
        phase.lags.append(time.perf_counter() - due)


async def _measure_restart(
    running: _RestartableRegistry,
    members: Sequence[SimulatedAgent],
    tally: AgentStatistics,
    terms: Scenario,
    story: ScenarioResult,
) -> None:
    phase = tally.begin_phase("restart")
    story.phases.append(phase)
    tally.expect_answers({member.node_id for member in members if member.is_running})
    killed = time.perf_counter()
    back = asyncio.create_task(tally.wait_for_answers(_compute_return_timeout(terms)))
    await running.kill_and_start()
    story.seconds_until_served = time.perf_counter() - killed
    story.missing_nodes = await back
    story.seconds_until_all_back = time.perf_counter() - killed
    await asyncio.sleep(_SETTLE_INTERVALS * terms.interval)
    await _measure_phase(
        terms.seconds / 2, tally.begin_phase("after the restart"), running.server, story
    )


async def _read_registry_view(database: Database, story: ScenarioResult) -> None:
    async with database.read() as session:
        story.statuses = {row.status: row.nodes for row in await session.execute(_STATUSES)}
        story.transitions = {row.what: row.nodes for row in await session.execute(_TRANSITIONS)}
