"""Simulated agents: runs of the real agent on simulated machines, and faults of those machines."""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from gql import GraphQLRequest

from agent.credentials import Credentials
from agent.errors import RegistryUnavailableError, RequestRejectedError
from agent.machine import Machine
from agent.metrics import Meter
from agent.pace import Clock, Schedule
from agent.replies import ReplyT, parse_reply
from agent.runner import Runner
from agent.settings import load_settings
from bench.fleet.agent_statistics import AgentStatistics
from bench.fleet.transports import Transport

_SETTINGS = load_settings({"role": "production-worker", "labels": "fleet"})
_CAPABILITIES: dict[str, Any] = {
    "os": "linux",
    "arch": "x86_64",
    "cpuCount": 16,
    "memoryTotalMb": 64000,
    "models": ["llama3:8b"],
    "services": [],
    "devices": [{"kind": "gpu", "name": "RTX 4000 Ada", "memoryMb": 20475}],
}
# Bounds of an outage, in intervals: the shortest are hardly noticed, the longest lead to OFFLINE.
_OUTAGE_INTERVALS = (0.5, 6.0)


class SimulatedAgent:
    """One node: its files, its connection, and the run of the agent on it."""

    def __init__(
        self, node_id: str, transport: Transport, statistics: AgentStatistics, directory: Path
    ) -> None:
        self.node_id = node_id
        self.transport = transport
        self.statistics = statistics
        self.sleep_count = 0
        self._directory = directory
        self._awake = asyncio.Event()
        self._awake.set()
        self._clock = Clock(sleep=self._sleep)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_awake(self) -> bool:
        return self._awake.is_set()

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done() and self.is_awake

    def start(self) -> None:
        """Start a run, with its own bootId as each start of a real agent has."""
        self._directory.mkdir(exist_ok=True)
        self._task = asyncio.create_task(self._run_agent())

    async def fail(self, seconds: float) -> None:
        """Kill the agent and start it again after some seconds."""
        self.stop()
        await asyncio.sleep(seconds)
        self.start()

    async def sleep(self, seconds: float) -> None:
        """Suspend the machine for some seconds.

        Afterwards the agent does not trust its connection, like the real one.
        """
        self.statistics.stop_expecting(self.node_id)
        self.sleep_count += 1
        self._awake.clear()
        self.transport.suspend()
        await asyncio.sleep(seconds)
        self.transport.wake()
        self._awake.set()

    def stop(self) -> None:
        self.statistics.stop_expecting(self.node_id)
        if self._task is not None:
            self._task.cancel()
        self.transport.pace_listeners.pop(self.node_id, None)
        if not self.transport.pace_listeners:
            self.transport.close()

    async def _run_agent(self) -> None:
        schedule = Schedule(self._clock)
        self.transport.pace_listeners[self.node_id] = schedule.apply_pace
        runner = Runner(
            _RecordingTransport(self),
            Credentials(self._directory, None, self._clock.uniform),
            schedule,
            self._directory,
            _SETTINGS,
            str(uuid4()),
            clock=self._clock,
            meter=_SimulatedMeter(),
            observe_machine=self._observe_machine,
            node_id=self.node_id,
        )
        try:
            await runner.run()
        except RequestRejectedError as rejection:
            self.statistics.record_fatal_failure(rejection)
        except Exception as error:  # noqa: BLE001  # a real agent would crash
            self.statistics.record_crash(error)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._awake.wait()

    def _observe_machine(self) -> Machine:
        return Machine(f"{self.node_id}.example", "10.0.0.7", None, _CAPABILITIES, {})


class _RecordingTransport:
    """The agent's way to the registry, which records answers and failures.

    What the machine slept through is not recorded: the sleep delayed the answer or broke the
    connection.
    """

    def __init__(self, agent: SimulatedAgent) -> None:
        self._agent = agent

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        agent = self._agent
        sleep_count, was_awake, start = agent.sleep_count, agent.is_awake, time.perf_counter()

        def has_slept() -> bool:
            return agent.sleep_count != sleep_count or not was_awake

        try:
            data = await agent.transport.execute(document, variables)
        except (RegistryUnavailableError, RequestRejectedError) as failure:
            if not has_slept():
                agent.statistics.record_failure(failure)
            raise
        if not has_slept():
            agent.statistics.record_answer(agent.node_id, time.perf_counter() - start)
        return parse_reply(data, reply)

    async def aclose(self) -> None:
        self._agent.transport.close()


class _SimulatedMeter(Meter):
    """Random metrics of a busy machine; some 400 bytes a heartbeat."""

    def __init__(self) -> None:
        pass

    def read(self) -> dict[str, Any]:
        uniform = random.uniform
        return {
            "cpuPercent": uniform(0, 100),
            "memoryPercent": uniform(0, 100),
            "memoryAvailableMb": uniform(1000, 64000),
            "diskPercent": uniform(0, 100),
            "loadAverage": uniform(0, 16),
            "gpus": [
                {
                    "name": "RTX 4000 Ada",
                    "utilizationPercent": uniform(0, 100),
                    "memoryTotalMb": 20475,
                    "memoryFreeMb": uniform(0, 20475),
                }
            ],
            "extra": {"uptimeSeconds": 86400},
        }


class FaultInjector:
    """Makes random agents fail and their machines sleep."""

    def __init__(self, agents: Sequence[SimulatedAgent], interval_seconds: float) -> None:
        self._agents = agents
        self._interval_seconds = interval_seconds
        self.failure_count = self.sleep_count = 0

    async def inject_faults(self, fail_percent: float, sleep_percent: float) -> None:
        """Inject faults until cancelled; both rates are in percent of the agents a minute."""
        async with asyncio.TaskGroup() as outages:
            while True:
                await asyncio.sleep(1)
                for agent in self._choose_agents(fail_percent):
                    outages.create_task(agent.fail(self._choose_outage_seconds()))
                    self.failure_count += 1
                for agent in self._choose_agents(sleep_percent):
                    outages.create_task(agent.sleep(self._choose_outage_seconds()))
                    self.sleep_count += 1

    def _choose_agents(self, percent_per_minute: float) -> list[SimulatedAgent]:
        """Choose running agents for the faults of one second."""
        expected = len(self._agents) * percent_per_minute / 100 / 60
        count = int(expected) + (random.random() < expected % 1)  # noqa: S311  # not a secret
        return [agent for agent in random.sample(self._agents, count) if agent.is_running]

    def _choose_outage_seconds(self) -> float:
        return self._interval_seconds * random.uniform(*_OUTAGE_INTERVALS)  # noqa: S311  # as above
