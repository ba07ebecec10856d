"""The simulated agents: runs of the agent itself, on machines that now and then fail or sleep."""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from gql import GraphQLRequest

from agent.beat import Run
from agent.client import RefusedError, RegistryAwayError, ReplyT, checked
from agent.credentials import Credentials
from agent.machine import Machine
from agent.metrics import Meter
from agent.pace import Clock, Schedule
from agent.settings import load_settings
from bench.fleet.agent_statistics import Tally
from bench.fleet.transports import Wire

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


class Member:
    """One node: its files, its connection, and the run of the agent that goes on there."""

    def __init__(self, node_id: str, wire: Wire, tally: Tally, directory: Path) -> None:
        self.node_id = node_id
        self.wire = wire
        self.tally = tally
        self.naps = 0
        self._directory = directory
        self._awake = asyncio.Event()
        self._awake.set()
        self._clock = Clock(sleep=self._sleep)
        self._run: asyncio.Task[None] | None = None

    @property
    def awake(self) -> bool:
        return self._awake.is_set()

    @property
    def there(self) -> bool:
        return self._run is not None and not self._run.done() and self.awake

    def start(self) -> None:
        """A run with a bootId of its own, as each start of an agent has one."""
        self._directory.mkdir(exist_ok=True)
        self._run = asyncio.create_task(self._beat())

    async def fail(self, seconds: float) -> None:
        """The agent is killed, and started again so much later."""
        self.stop()
        await asyncio.sleep(seconds)
        self.start()

    async def sleep(self, seconds: float) -> None:
        """The machine stands still; its connection is not trusted afterwards, as by the agent."""
        self.tally.let_go(self.node_id)
        self.naps += 1
        self._awake.clear()
        self.wire.suspend()
        await asyncio.sleep(seconds)
        self.wire.wake()
        self._awake.set()

    def stop(self) -> None:
        self.tally.let_go(self.node_id)
        if self._run is not None:
            self._run.cancel()
        self.wire.paces.pop(self.node_id, None)
        if not self.wire.paces:
            self.wire.close()

    async def _beat(self) -> None:
        schedule = Schedule(self._clock)
        self.wire.paces[self.node_id] = schedule.hear_pace
        run = Run(
            _Asking(self),
            Credentials(self._directory, None, self._clock.uniform),
            schedule,
            self._directory,
            _SETTINGS,
            str(uuid4()),
            clock=self._clock,
            meter=_Gauge(),
            observe=self._observe,
            node_id=self.node_id,
        )
        try:
            await run.keep_beating()
        except RefusedError as refusal:
            self.tally.gave_up(refusal)
        except Exception as error:  # noqa: BLE001  # an agent would have died of it
            self.tally.died(error)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._awake.wait()

    def _observe(self) -> Machine:
        return Machine(f"{self.node_id}.example", "10.0.0.7", None, _CAPABILITIES, {})


class _Asking:
    """The registry as one member knows it; counts what comes of it."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def ask(
        self, document: GraphQLRequest, variables: dict[str, Any], reply: type[ReplyT]
    ) -> ReplyT:
        member = self._member
        naps, asleep, began = member.naps, not member.awake, time.perf_counter()
        try:
            data = await member.wire.ask(document, variables)
        except (RegistryAwayError, RefusedError) as failure:
            if naps == member.naps and not asleep:  # else it is the sleep that broke the connection
                member.tally.failed(failure)
            raise
        if naps == member.naps and not asleep:
            member.tally.answered(member.node_id, time.perf_counter() - began)
        return checked(data, reply)

    async def aclose(self) -> None:
        self._member.wire.close()


class _Gauge(Meter):
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


class Fates:
    """Lets members fail and sleep."""

    def __init__(self, members: Sequence[Member], interval_seconds: float) -> None:
        self._members = members
        self._interval_seconds = interval_seconds
        self.failed = self.slept = 0

    async def strike(self, fail_percent: float, sleep_percent: float) -> None:
        """For ever, so many percent of the members a minute."""
        async with asyncio.TaskGroup() as outages:
            while True:
                await asyncio.sleep(1)
                for member in self._chosen(fail_percent):
                    outages.create_task(member.fail(self._outage_seconds()))
                    self.failed += 1
                for member in self._chosen(sleep_percent):
                    outages.create_task(member.sleep(self._outage_seconds()))
                    self.slept += 1

    def _chosen(self, percent: float) -> list[Member]:
        """For one second."""
        expected = len(self._members) * percent / 100 / 60
        count = int(expected) + (random.random() < expected % 1)  # noqa: S311  # no secret
        return [member for member in random.sample(self._members, count) if member.there]

    def _outage_seconds(self) -> float:
        return self._interval_seconds * random.uniform(*_OUTAGE_INTERVALS)  # noqa: S311  # as above
