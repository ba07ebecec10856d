"""The simulated agents: runs of the agent itself, on machines that now and then fail or sleep."""

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
# An outage lasts so many intervals: some are hardly noticed, others lead to OFFLINE.
_OUTAGE_INTERVALS = (0.5, 6.0)


class SimulatedAgent:
    """One node: its files, its connection, and the run of the agent that goes on there."""

    def __init__(
        self, node_id: str, wire: Transport, tally: AgentStatistics, directory: Path
    ) -> None:
        self.node_id = node_id
        self.transport = wire
        self.statistics = tally
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
        """A run with a bootId of its own, as each start of an agent has one."""
        self._directory.mkdir(exist_ok=True)
        self._task = asyncio.create_task(self._run_agent())

    async def fail(self, seconds: float) -> None:
        """The agent is killed, and started again so much later."""
        self.stop()
        await asyncio.sleep(seconds)
        self.start()

    async def sleep(self, seconds: float) -> None:
        """The machine stands still; its connection is not trusted afterwards, as by the agent."""
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
        run = Runner(
            _RecordingClient(self),
            Credentials(self._directory, None, self._clock.uniform),
            schedule,
            self._directory,
            _SETTINGS,
            str(uuid4()),
            clock=self._clock,
            meter=_SimulatedMeter(),
            observe_machine=self._observe,
            node_id=self.node_id,
        )
        try:
            await run.run()
        except RequestRejectedError as refusal:
            self.statistics.record_refusal(refusal)
        except Exception as error:  # noqa: BLE001  # an agent would have died of it
            self.statistics.record_crash(error)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._awake.wait()

    def _observe(self) -> Machine:
        return Machine(f"{self.node_id}.example", "10.0.0.7", None, _CAPABILITIES, {})


class _RecordingClient:
    """The registry as one member knows it; counts what comes of it."""

    def __init__(self, member: SimulatedAgent) -> None:
        self._member = member

    async def execute(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        member = self._member
        naps, asleep, began = member.sleep_count, not member.is_awake, time.perf_counter()
        try:
            data = await member.transport.ask(document, variables)
        except (RegistryUnavailableError, RequestRejectedError) as failure:
            if (
                naps == member.sleep_count and not asleep
            ):  # else it is the sleep that broke the connection
                member.statistics.record_failure(failure)
            raise
        if naps == member.sleep_count and not asleep:
            member.statistics.record_answer(member.node_id, time.perf_counter() - began)
        return parse_reply(data, reply)

    async def aclose(self) -> None:
        self._member.transport.close()


class _SimulatedMeter(Meter):
    """Figures of a machine that is busy; some 400 bytes."""

    def __init__(self) -> None:
        pass

    def read(self) -> dict[str, Any]:
        some = random.uniform
        return {
            "cpuPercent": some(0, 100),
            "memoryPercent": some(0, 100),
            "memoryAvailableMb": some(1000, 64000),
            "diskPercent": some(0, 100),
            "loadAverage": some(0, 16),
            "gpus": [
                {
                    "name": "RTX 4000 Ada",
                    "utilizationPercent": some(0, 100),
                    "memoryTotalMb": 20475,
                    "memoryFreeMb": some(0, 20475),
                }
            ],
            "extra": {"uptimeSeconds": 86400},
        }


class FaultInjector:
    """Lets members fail and sleep."""

    def __init__(self, members: Sequence[SimulatedAgent], interval_seconds: float) -> None:
        self._agents = members
        self._interval_seconds = interval_seconds
        self.failure_count = self.sleep_count = 0

    async def inject_faults(self, fail_percent: float, sleep_percent: float) -> None:
        """For ever, so many percent of the members a minute."""
        async with asyncio.TaskGroup() as outages:
            while True:
                await asyncio.sleep(1)
                for member in self._choose_agents(fail_percent):
                    outages.create_task(member.fail(self._choose_outage_seconds()))
                    self.failure_count += 1
                for member in self._choose_agents(sleep_percent):
                    outages.create_task(member.sleep(self._choose_outage_seconds()))
                    self.sleep_count += 1

    def _choose_agents(self, percent: float) -> list[SimulatedAgent]:
        """For one second."""
        expected = len(self._agents) * percent / 100 / 60
        count = int(expected) + (random.random() < expected % 1)  # noqa: S311  # no secret
        return [member for member in random.sample(self._agents, count) if member.is_running]

    def _choose_outage_seconds(self) -> float:
        return self._interval_seconds * random.uniform(*_OUTAGE_INTERVALS)  # noqa: S311  # as above
