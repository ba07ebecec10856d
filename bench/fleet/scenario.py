"""The course of a simulation: the fleet starts, sends heartbeats, and may see its registry killed.

Every run of it has the same phases; a `Scenario` sets their sizes.
"""

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

_STARTS_PER_SECOND = 50
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
SELECT coalesce(previous_status, 'new') || ' to ' || c.status || ', ' || reason AS transition,
       count(*) AS nodes
FROM status_changes c JOIN nodes n ON n.id = c.node_id
WHERE n.node_id LIKE 'fleet-%' GROUP BY 1 ORDER BY 2 DESC
""")


@dataclass(frozen=True, slots=True)
class Scenario:
    """The size of the fleet and what happens to it; `interval` and `seconds` are in seconds.

    `fail` and `sleep` are in percent of the nodes a minute. With 0 `connections` each node has its
    own.
    """

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
    """What a scenario measured; memory is the server's, in bytes.

    The seconds until the registry served again, and until all nodes were back, count from the
    kill; they are None without a restart.
    """

    phases: list[Phase] = field(default_factory=list)
    baseline_bytes: int = 0
    nodes_after_baseline: int = 0
    """How many nodes started after `baseline_bytes` was read."""
    memory_samples: list[tuple[float, int]] = field(default_factory=list)
    """Seconds into the measured phase, and the memory at that time."""
    seconds_until_served: float | None = None
    seconds_until_all_back: float | None = None
    missing_nodes: int = 0
    failure_count: int = 0
    sleep_count: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    transitions: dict[str, int] = field(default_factory=dict)


async def run_scenario(scenario: Scenario) -> ScenarioResult:
    """Run a scenario on a new registry and database."""
    result = ScenarioResult()
    gc.disable()  # a collection would pause all agents at once, which does not happen to a fleet
    async with processes.open_database() as database, AsyncExitStack() as stack:
        directory = tempfile.TemporaryDirectory(prefix="fleet-", dir=_find_memory_directory())
        folder = Path(stack.enter_context(directory))
        port = processes.find_free_port()
        registry = await stack.enter_async_context(
            _RestartableRegistry(database, port, scenario).run()
        )
        statistics = AgentStatistics()
        agents = _create_agents(scenario, port, statistics, folder)
        stack.callback(_stop_agents, agents)
        await _start_fleet(scenario, agents, statistics, registry.server, result)
        injector = FaultInjector(agents, scenario.interval)
        task = asyncio.create_task(injector.inject_faults(scenario.fail, scenario.sleep))
        stack.push_async_callback(_cancel, task)
        steady = statistics.begin_phase("steady")
        await _measure_phase(scenario.seconds, steady, registry.server, result)
        if scenario.restart:
            await _measure_restart(registry, agents, statistics, scenario, result)
        result.failure_count, result.sleep_count = injector.failure_count, injector.sleep_count
        await _read_registry_view(database, result)
    return result


class _RestartableRegistry:
    """A registry that keeps its port over restarts."""

    def __init__(self, database: Database, port: int, scenario: Scenario) -> None:
        self._database = database
        self._port = port
        self._scenario = scenario
        self._stack = AsyncExitStack()
        self.server: Server

    @asynccontextmanager
    async def run(self) -> AsyncIterator["_RestartableRegistry"]:
        await self._start()
        try:
            yield self
        finally:
            await self._stack.aclose()

    async def restart(self) -> None:
        """Kill the registry with SIGKILL and start it again."""
        self.server.process.kill()
        await self._stack.aclose()
        await self._start()

    async def _start(self) -> None:
        scenario = self._scenario
        settings: dict[str, Any] = {
            "heartbeat_min_interval_seconds": scenario.interval,
            # However large the fleet is, the interval sets the pace and not this rate.
            "heartbeat_target_rate": max(1000.0, scenario.nodes / scenario.interval),
            # All agents share one address here, unlike those of a real fleet.
            "max_subscriptions_per_caller": scenario.nodes + 1,
            "heartbeats_per_second": 2 * max(1.0, 1 / scenario.interval) * scenario.nodes,
            "registrations_per_minute": 60 * scenario.nodes,
        }
        server = processes.run_registry(self._database.url, port=self._port, **settings)
        self.server = await self._stack.enter_async_context(server)


def _find_memory_directory() -> str | None:
    """Return a directory in memory, as writing the files of 10,000 agents is not what is measured.

    None stands for the default of `tempfile`.
    """
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  # the fleet's folder is in it


def _create_agents(
    scenario: Scenario, port: int, statistics: AgentStatistics, folder: Path
) -> list[SimulatedAgent]:
    def create_transport() -> Transport:
        return HttpTransport(port) if scenario.transport == "http" else WebSocketTransport(port)

    shared = [create_transport() for _ in range(scenario.connections)]
    agents = []
    for number in range(scenario.nodes):
        node_id = f"fleet-{number:05}"
        transport = shared[number % len(shared)] if shared else create_transport()
        agents.append(SimulatedAgent(node_id, transport, statistics, folder / node_id))
    return agents


async def _start_fleet(
    scenario: Scenario,
    agents: Sequence[SimulatedAgent],
    statistics: AgentStatistics,
    server: Server,
    result: ScenarioResult,
) -> None:
    """Start all agents, a tenth of them before the baseline of the memory is read.

    So what the server allocates once does not count as memory of a node.
    """
    result.phases.append(statistics.begin_phase("arrival"))
    early_count = len(agents) // 10
    node_ids = {agent.node_id for agent in agents}
    statistics.expect_answers(node_ids)
    await _start_agents(agents[:early_count])
    await asyncio.sleep(_SETTLE_INTERVALS * scenario.interval)
    baseline_bytes = server.resident_bytes
    await _start_agents(agents[early_count:])
    for _ in range(_SETTLE_INTERVALS):
        if missing := await statistics.wait_for_answers(_compute_return_timeout(scenario)):
            click.echo(f"{missing} nodes got no answer", err=True)
        statistics.expect_answers(node_ids)
    await asyncio.sleep(scenario.interval)
    result.baseline_bytes, result.nodes_after_baseline = baseline_bytes, len(agents) - early_count


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _stop_agents(agents: Sequence[SimulatedAgent]) -> None:
    for agent in agents:
        agent.stop()


async def _start_agents(agents: Sequence[SimulatedAgent]) -> None:
    for agent in agents:
        agent.start()
        await asyncio.sleep(1 / _STARTS_PER_SECOND)


def _compute_return_timeout(scenario: Scenario) -> float:
    return max(_RETURN_SECONDS, _RETURN_INTERVALS * scenario.interval)


async def _measure_phase(
    seconds: float, phase: Phase, server: Server, result: ScenarioResult
) -> None:
    """Measure for some seconds and print the progress to stderr."""
    result.phases.append(phase)
    start = last = time.perf_counter()
    phase_meter = progress_meter = CpuMeter(server)
    answer_count = 0
    lag_task = asyncio.create_task(_record_lag(phase))
    while (remaining := start + seconds - time.perf_counter()) > 0:
        await asyncio.sleep(min(remaining, _PROGRESS_SECONDS))
        now, resident_bytes = time.perf_counter(), server.resident_bytes
        click.echo(
            f"{now - start:6.0f} s: {resident_bytes / 1e6:.1f} MB,"
            f" {(len(phase.latencies) - answer_count) / (now - last):.0f} answers/s,"
            f" {progress_meter.read().server:.2f} cores",
            err=True,
        )
        result.memory_samples.append((now - start, resident_bytes))
        last, answer_count, progress_meter = now, len(phase.latencies), CpuMeter(server)
    lag_task.cancel()
    phase.seconds = last - start
    phase.cpu = phase_meter.read()


async def _record_lag(phase: Phase) -> None:
    """Sample without end how late this event loop is, which is no delay of the server."""
    while True:
        due = time.perf_counter() + _LAG_SAMPLE_SECONDS
        await asyncio.sleep(_LAG_SAMPLE_SECONDS)
        phase.lags.append(time.perf_counter() - due)


async def _measure_restart(
    registry: _RestartableRegistry,
    agents: Sequence[SimulatedAgent],
    statistics: AgentStatistics,
    scenario: Scenario,
    result: ScenarioResult,
) -> None:
    """Kill the registry, wait until all running nodes are back, and measure another phase."""
    result.phases.append(statistics.begin_phase("restart"))
    statistics.expect_answers({agent.node_id for agent in agents if agent.is_running})
    killed_at = time.perf_counter()
    answers = asyncio.create_task(statistics.wait_for_answers(_compute_return_timeout(scenario)))
    await registry.restart()
    result.seconds_until_served = time.perf_counter() - killed_at
    result.missing_nodes = await answers
    result.seconds_until_all_back = time.perf_counter() - killed_at
    await asyncio.sleep(_SETTLE_INTERVALS * scenario.interval)
    phase = statistics.begin_phase("after the restart")
    await _measure_phase(scenario.seconds / 2, phase, registry.server, result)


async def _read_registry_view(database: Database, result: ScenarioResult) -> None:
    """Read the statuses and transitions of the fleet from the registry's database."""
    async with database.read() as session:
        statuses = await session.execute(_STATUSES)
        result.statuses = {row.status: row.nodes for row in statuses}
        transitions = await session.execute(_TRANSITIONS)
        result.transitions = {row.transition: row.nodes for row in transitions}
