"""The liveness rules on real SQL, one case at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, RegistryMode, StatusReason
from db.core.errors import NodeIdTaken, NodeNotFound, RegistryError, StaleBoot
from db.core.tables import Node
from db.registry import heartbeats, nodes, process_heartbeats, registration, status_changes, sweep
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from db.registry.status_changes import LoggedChange
from db.registry.sweep import SweepResult
from tests.support.fleet import AGENT, OPERATOR, make_registration, wait_for_lock

BASE = datetime(2030, 1, 1, tzinfo=UTC)
RULES = LivenessRules(jitter=0)
OVERDUE, TTL = 15, 35
ONLINE, DEGRADED, OFFLINE = NodeStatus.ONLINE, NodeStatus.DEGRADED, NodeStatus.OFFLINE


def time_after(seconds: float) -> datetime:
    return BASE + timedelta(seconds=seconds)


class Registry:
    """One process of the registry on real SQL, with a clock that the test moves."""

    def __init__(self, database: Database, rules: LivenessRules = RULES) -> None:
        self.database = database
        self.rules = rules
        self.now = 0.0
        self.process = uuid4()
        self._sequence = 0

    @asynccontextmanager
    async def at_now(self) -> AsyncIterator[AsyncSession]:
        async with self.database.write() as session:
            await session.execute(
                text("SELECT set_config('node_registry.now', :now, true)"),
                {"now": time_after(self.now).isoformat()},
            )
            yield session

    async def register(self, node_id: str, boot: str = "boot-1", **fields: Any) -> Node:
        async with self.at_now() as session:
            node, _ = await registration.register(
                session, make_registration(node_id, boot, **fields), rules=self.rules, caller=AGENT
            )
        return node

    async def record(self, *reports: HeartbeatReport) -> list[HeartbeatAck | RegistryError]:
        async with self.at_now() as session:
            return await heartbeats.record_in_transaction(session, reports, self.rules)

    async def beat(self, *node_ids: str, boot: str = "boot-1", **fields: Any) -> None:
        """Send heartbeats that must be accepted."""
        self._sequence += 1
        reports = [HeartbeatReport(n, boot, self._sequence, **fields) for n in node_ids]
        outcomes = await self.record(*reports)
        assert all(isinstance(outcome, HeartbeatAck) for outcome in outcomes)

    async def sweep(self) -> SweepResult:
        async with self.at_now() as session:
            return await sweep.sweep(session, self.process, self.rules)

    async def work(self, seconds: float, *reporting: str, every: float = 5) -> None:
        """Let time pass while the process sweeps and the nodes send heartbeats."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + every, until)
            if reporting:
                await self.beat(*reporting)
            await self.sweep()

    async def node(self, node_id: str) -> Node | None:
        async with self.database.read() as session:
            return await nodes.find_node(session, node_id)

    async def status(self, node_id: str) -> tuple[NodeStatus, StatusReason]:
        node = await self.node(node_id)
        assert node is not None
        return node.status, node.status_reason

    async def log(self) -> list[LoggedChange]:
        """Return the change log without what the migrations wrote."""
        async with self.database.open_connection() as connection:
            logged, _ = await status_changes.list_changes_after(connection, 0)
        return [change for change in logged if change.reason is not StatusReason.SEEDED]

    async def statuses(self) -> list[NodeStatus]:
        return [change.status for change in await self.log()]


@pytest.fixture
async def registry(database: Database) -> Registry:
    registry = Registry(database)
    async with registry.at_now() as session:
        await session.execute(
            text("UPDATE registry_state SET changed_at = :base, mode_since = :base"),
            {"base": BASE},
        )
    await registry.sweep()
    return registry


async def test_silent_node_becomes_degraded_and_offline_exactly_when_due(
    registry: Registry,
) -> None:
    await registry.register("node-3")
    for at, status in [(14.999, ONLINE), (15, DEGRADED), (34.999, DEGRADED), (35, OFFLINE)]:
        while registry.now + 5 < at:
            await registry.work(5)
        registry.now = at
        await registry.sweep()
        assert (await registry.status("node-3"))[0] is status
    assert await registry.statuses() == [ONLINE, DEGRADED, OFFLINE]


async def test_live_machine_keeps_its_id_against_a_clone(registry: Registry) -> None:
    host = {"hostname": "gpu-1", "local_ip": "10.0.0.1"}
    await registry.register("node-3", "boot-1", **host)
    registry.now = 3
    with pytest.raises(NodeIdTaken) as rejection:
        await registry.register(
            "node-3", "boot-2", hostname="gpu-1", local_ip="10.0.0.2", replaces_boot_id="boot-1"
        )
    facts = rejection.value.details
    assert (facts["holderHostname"], facts["holderAddress"]) == ("gpu-1", "10.0.0.1")
    assert facts["heldSince"] == BASE.isoformat()
    assert facts["retryAfterSeconds"] == OVERDUE - 3
    await registry.beat("node-3")
    [outcome] = await registry.record(HeartbeatReport("node-3", "boot-2", 99))
    assert isinstance(outcome, StaleBoot)
    assert await registry.statuses() == [ONLINE]


async def test_reinstalled_host_gets_its_id_once_its_old_run_is_silent(
    registry: Registry,
) -> None:
    await registry.register("node-3", "boot-1", hostname="gpu-1")
    await registry.work(14)
    with pytest.raises(NodeIdTaken):
        await registry.register("node-3", "boot-2", hostname="gpu-1")
    await registry.work(1)
    await registry.register("node-3", "boot-2", hostname="gpu-1")
    await registry.beat("node-3", boot="boot-2")
    [old_outcome] = await registry.record(HeartbeatReport("node-3", "boot-1", 1000))
    assert isinstance(old_outcome, StaleBoot)
    assert await registry.status("node-3") == (ONLINE, StatusReason.REGISTERED)


async def test_renamed_host_keeps_its_id_and_its_run(registry: Registry) -> None:
    first = await registry.register("node-3", "boot-1", hostname="gpu-1")
    registry.now = 1
    second = await registry.register("node-3", "boot-1", hostname="gpu-2")
    assert (second.id, second.hostname) == (first.id, "gpu-2")
    registry.now = 2
    with pytest.raises(NodeIdTaken):  # a new run under a new name cannot prove that it is the same
        await registry.register("node-3", "boot-2", hostname="gpu-3", replaces_boot_id="boot-1")
    assert await registry.statuses() == [ONLINE]


async def test_restart_within_a_second_is_not_a_status_change(registry: Registry) -> None:
    host = {"hostname": "gpu-1", "local_ip": "10.0.0.1"}
    await registry.register("node-3", "boot-1", **host)
    await registry.beat("node-3")
    registry.now = 0.5
    await registry.register("node-3", "boot-2", replaces_boot_id="boot-1", **host)
    [old_outcome, new_outcome] = await registry.record(
        HeartbeatReport("node-3", "boot-1", 500), HeartbeatReport("node-3", "boot-2", 0)
    )
    assert isinstance(old_outcome, StaleBoot)
    assert isinstance(new_outcome, HeartbeatAck)
    assert await registry.statuses() == [ONLINE]


async def test_late_repeated_and_unordered_heartbeats_change_nothing(registry: Registry) -> None:
    await registry.register("node-3")
    await registry.record(HeartbeatReport("node-3", "boot-1", 5))
    await registry.work(8)
    before = await registry.node("node-3")
    outcomes = await registry.record(
        HeartbeatReport("node-3", "boot-1", 5, degraded=True),
        HeartbeatReport("node-3", "boot-1", 4, degraded=True),
        HeartbeatReport("node-3", "boot-1", 5),
    )
    assert [ack.status for ack in outcomes if isinstance(ack, HeartbeatAck)] == [ONLINE] * 3
    assert [ack.received_at for ack in outcomes if isinstance(ack, HeartbeatAck)] == [BASE] * 3
    assert await registry.node("node-3") == before
    await registry.work(7)  # an old heartbeat does not renew the lease either
    assert await registry.status("node-3") == (DEGRADED, StatusReason.MISSED_HEARTBEATS)


@pytest.mark.parametrize("days", [-1, 1])
async def test_wall_clock_of_an_agent_has_no_effect(registry: Registry, days: int) -> None:
    """No value that an agent sends is used as a time, whatever its name."""
    agent_time = time_after(days * 86400).isoformat()
    await registry.register("node-3", metadata={"startedAt": agent_time})
    for _ in range(20):
        await registry.work(5)
        await registry.beat("node-3", metrics={"extra": {"timestamp": agent_time}})
    assert await registry.statuses() == [ONLINE]
    node = await registry.node("node-3")
    assert node is not None
    assert node.last_heartbeat == time_after(registry.now)


async def test_concurrent_sweeps_change_each_node_once(database: Database) -> None:
    registry = Registry(database)
    await registry.sweep()
    names = [f"node-{n}" for n in range(100, 300)]
    for name in names:
        await registry.register(name)
    await registry.beat(*names)
    await registry.work(10, every=5)
    registry.now += 5

    async def sweep_and_count() -> int:
        async with registry.at_now() as session:
            return (
                await sweep.sweep(session, uuid4(), replace(RULES, protect_fraction=1))
            ).changed_nodes

    counts = await asyncio.gather(*(sweep_and_count() for _ in range(6)))
    assert sum(counts) == len(names)
    logged = [change for change in await registry.log() if change.status is DEGRADED]
    assert sorted(change.node_id for change in logged) == names
    revisions = [change.revision for change in await registry.log()]
    assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))


async def test_heartbeat_concurrent_with_a_removal_is_rejected(
    registry: Registry,
) -> None:
    node = await registry.register("node-3")
    async with registry.at_now() as session:
        await nodes.deregister(session, "node-3", note=None, caller=OPERATOR)
        recording = asyncio.create_task(registry.record(HeartbeatReport("node-3", "boot-1", 1)))
        await wait_for_lock(registry.database)
        assert not recording.done()
    [concurrent_outcome] = await recording
    assert isinstance(concurrent_outcome, NodeNotFound)
    [later_outcome] = await registry.record(HeartbeatReport("node-3", "boot-1", 2))
    assert isinstance(later_outcome, NodeNotFound)
    assert await registry.node("node-3") is None
    last = (await registry.log())[-1]
    assert (last.node, last.status, last.reason) == (node.id, OFFLINE, StatusReason.DEREGISTERED)
    assert await registry.statuses() == [ONLINE, OFFLINE]


async def test_heartbeat_concurrent_with_a_sweep_brings_its_node_online(registry: Registry) -> None:
    await registry.register("node-3")
    await registry.work(10)
    registry.now = OVERDUE
    async with registry.at_now() as session:
        await sweep.sweep(session, registry.process, RULES)
        recording = asyncio.create_task(registry.record(HeartbeatReport("node-3", "boot-1", 1)))
        await wait_for_lock(registry.database)
    [outcome] = await recording
    assert isinstance(outcome, HeartbeatAck)
    assert outcome.status is ONLINE
    assert await registry.statuses() == [ONLINE, DEGRADED, ONLINE]


async def test_self_reported_degraded_node_stays_degraded_until_it_reports_online(
    registry: Registry,
) -> None:
    await registry.register("node-3")
    for _ in range(100):
        await registry.work(5)
        await registry.beat("node-3", degraded=True)
    assert await registry.status("node-3") == (DEGRADED, StatusReason.SELF_REPORTED)
    await registry.beat("node-3")
    assert await registry.status("node-3") == (ONLINE, StatusReason.HEARTBEAT)
    assert await registry.statuses() == [ONLINE, DEGRADED, ONLINE]


@pytest.mark.parametrize(
    ("is_heard", "degraded", "status"),
    [(True, False, ONLINE), (True, True, DEGRADED), (False, False, OFFLINE)],
)
async def test_maintenance_ends_at_its_time_in_the_status_of_the_heartbeats(
    registry: Registry, *, is_heard: bool, degraded: bool, status: NodeStatus
) -> None:
    await registry.register("node-3")
    async with registry.at_now() as session:
        await nodes.start_maintenance(
            session, "node-3", note="disks", until=time_after(60), caller=OPERATOR
        )
    while registry.now < 55:
        await registry.work(5)
        if is_heard:
            await registry.beat("node-3", degraded=degraded)
    await registry.register("node-3", "boot-1")
    if is_heard:
        await registry.beat("node-3", degraded=degraded)
    else:
        async with registry.at_now() as session:
            await session.execute(
                text("UPDATE nodes SET heard_at = :base WHERE node_id = 'node-3'"), {"base": BASE}
            )
    assert await registry.status("node-3") == (
        NodeStatus.MAINTENANCE,
        StatusReason.MAINTENANCE_STARTED,
    )
    await registry.work(5)
    assert await registry.status("node-3") == (status, StatusReason.MAINTENANCE_ENDED)
    node = await registry.node("node-3")
    assert node is not None
    assert (node.maintenance_until, node.status_since) == (None, time_after(60))


async def test_maintenance_without_end_is_ended_only_by_an_operator(
    registry: Registry,
) -> None:
    await registry.register("node-3")
    async with registry.at_now() as session:
        await nodes.start_maintenance(session, "node-3", note=None, until=None, caller=OPERATOR)
    await registry.work(100)
    registry.now += 3600
    registry.process = uuid4()
    await registry.register("node-3", "boot-2")
    await registry.beat("node-3", boot="boot-2")
    await registry.work(100)
    assert (await registry.status("node-3"))[0] is NodeStatus.MAINTENANCE
    assert await registry.statuses() == [ONLINE, NodeStatus.MAINTENANCE]


async def flap(registry: Registry) -> None:
    """Let a node fall silent and return until it is FLAPPING."""
    for _ in range(2):
        await registry.work(OVERDUE)
        await registry.beat("node-3")


async def test_flapping_node_is_held_until_it_was_steady(registry: Registry) -> None:
    await registry.register("node-3")
    await flap(registry)
    assert await registry.status("node-3") == (DEGRADED, StatusReason.FLAPPING)
    held_at = registry.now
    await registry.work(100, "node-3")
    await registry.work(OVERDUE)
    await registry.beat("node-3")  # late again, so it counts as steady only from now on
    late_at = registry.now
    await registry.work(RULES.flap_steady - 5, "node-3")
    assert await registry.status("node-3") == (DEGRADED, StatusReason.FLAPPING)
    await registry.work(5, "node-3")
    assert registry.now == late_at + RULES.flap_steady
    assert await registry.status("node-3") == (ONLINE, StatusReason.HEARTBEAT)
    assert [change.changed_at for change in (await registry.log())[-2:]] == [
        time_after(held_at),
        time_after(registry.now),
    ]
    registry.rules = replace(RULES, process_timeout=20)
    await registry.work(RULES.flap_window - OVERDUE - 1, "node-3", every=10)
    await registry.work(OVERDUE)
    await registry.beat("node-3")  # one more fall within the window is too many
    assert await registry.status("node-3") == (DEGRADED, StatusReason.FLAPPING)


async def test_flapping_node_that_stays_silent_becomes_offline(registry: Registry) -> None:
    await registry.register("node-3")
    await flap(registry)
    await registry.work(RULES.flap_steady - 1)
    assert await registry.status("node-3") == (DEGRADED, StatusReason.FLAPPING)
    await registry.work(1)
    assert await registry.status("node-3") == (OFFLINE, StatusReason.MISSED_HEARTBEATS)


async def test_fall_outside_the_window_does_not_count_for_flapping(registry: Registry) -> None:
    await registry.register("node-3")
    await registry.work(OVERDUE)
    await registry.beat("node-3")
    registry.rules = replace(RULES, process_timeout=20)
    await registry.work(RULES.flap_window, "node-3", every=10)
    await registry.work(OVERDUE)
    await registry.beat("node-3")
    assert await registry.status("node-3") == (ONLINE, StatusReason.HEARTBEAT)


async def test_self_reports_and_maintenance_do_not_count_for_flapping(registry: Registry) -> None:
    await registry.register("node-3")
    for n in range(10):
        await registry.work(5)
        await registry.beat("node-3", degraded=n % 2 == 0)
        async with registry.at_now() as session:
            await nodes.start_maintenance(session, "node-3", note=None, until=None, caller=OPERATOR)
            await nodes.end_maintenance(session, "node-3", rules=RULES, note=None, caller=OPERATOR)
    assert (await registry.status("node-3"))[0] is ONLINE


async def test_long_offline_node_is_removed_by_its_label(registry: Registry) -> None:
    registry.rules = replace(RULES, remove_offline_after={"ephemeral": 100, "brief": 20})
    await registry.register("node-3", labels=["ephemeral", "gpu"])
    await registry.register("node-4", labels=["ephemeral", "brief"])
    await registry.register("node-5", labels=["gpu"])
    await registry.work(TTL)
    await registry.work(15)
    assert [await registry.node(n) is not None for n in ("node-3", "node-4", "node-5")] == [
        True
    ] * 3
    await registry.work(5)
    assert await registry.node("node-4") is None
    await registry.work(75)
    assert await registry.node("node-3") is not None
    await registry.work(5)
    assert await registry.node("node-3") is None
    assert await registry.status("node-5") == (OFFLINE, StatusReason.MISSED_HEARTBEATS)
    last = (await registry.log())[-1]
    assert (last.node_id, last.reason, last.actor) == (
        "node-3",
        StatusReason.DEREGISTERED,
        "system/registry",
    )
    [outcome] = await registry.record(HeartbeatReport("node-3", "boot-1", 9))
    assert isinstance(outcome, NodeNotFound)


async def test_outage_does_not_count_for_removal(registry: Registry) -> None:
    registry.rules = replace(RULES, remove_offline_after={"ephemeral": 100})
    await registry.register("node-3", labels=["ephemeral"])
    await registry.work(TTL)
    registry.now += 1000
    await registry.work(TTL - 5)
    assert await registry.node("node-3") is not None
    await registry.work(10)
    assert await registry.node("node-3") is None


async def register_fleet(registry: Registry, count: int) -> list[str]:
    names = [f"node-{n}" for n in range(100, 100 + count)]
    for name in names:
        await registry.register(name)
    await registry.beat(*names)
    return names


async def test_small_fleet_is_never_protected(registry: Registry) -> None:
    await register_fleet(registry, 9)
    await registry.work(TTL)
    assert (await registry.statuses())[-9:] == [OFFLINE] * 9


async def test_protected_mode_ends_when_most_nodes_return_and_the_rest_become_offline(
    registry: Registry,
) -> None:
    names = await register_fleet(registry, 20)
    await registry.work(100, *names[:5])
    assert (await registry.sweep()).mode is RegistryMode.PROTECTED
    assert OFFLINE not in await registry.statuses()
    await registry.beat(*names[:14])
    assert (await registry.sweep()).mode is RegistryMode.PROTECTED
    await registry.beat(*names[:15])
    result = await registry.sweep()
    assert (result.mode, result.mode_changed, result.changed_nodes) == (
        RegistryMode.NORMAL,
        True,
        5,
    )
    assert (await registry.statuses())[-5:] == [OFFLINE] * 5


async def test_restart_does_not_end_protected_mode(registry: Registry) -> None:
    names = await register_fleet(registry, 20)
    await registry.work(100, *names[:5])
    registry.now += 60
    registry.process = uuid4()
    result = await registry.sweep()
    assert result.outage_since == time_after(registry.now - 60)
    assert (result.mode, result.mode_changed) == (RegistryMode.PROTECTED, False)


async def test_clock_set_back_does_not_prolong_protected_mode(
    registry: Registry,
) -> None:
    names = await register_fleet(registry, 20)
    await registry.work(100, *names[:5])
    registry.now -= 5 * 3600
    await registry.work(RULES.protect_max + TTL, *names[:5])
    assert (await registry.sweep()).mode is RegistryMode.NORMAL
    assert (await registry.statuses())[-15:] == [OFFLINE] * 15


async def test_clock_set_back_does_not_prevent_protected_mode(registry: Registry) -> None:
    names = await register_fleet(registry, 20)
    registry.now += 5 * 3600
    await registry.beat(*names)
    await registry.work(100, *names)
    async with registry.at_now() as session:
        await session.execute(
            text("UPDATE registry_state SET mode_since = :now"), {"now": time_after(registry.now)}
        )
    registry.now -= 5 * 3600
    await registry.work(100, *names[:5])
    assert (await registry.sweep()).mode is RegistryMode.PROTECTED


@pytest.mark.parametrize("before", [True, False], ids=["before it flaps", "while it is held"])
async def test_clock_set_back_does_not_prolong_flapping(
    registry: Registry, *, before: bool
) -> None:
    registry.now = 5 * 3600
    await registry.sweep()
    await registry.register("node-3")
    if before:
        registry.now = 0
        await registry.sweep()
    await flap(registry)
    if not before:
        registry.now = 0
    assert await registry.status("node-3") == (DEGRADED, StatusReason.FLAPPING)
    await registry.work(RULES.flap_steady + 10, "node-3")
    assert await registry.status("node-3") == (ONLINE, StatusReason.HEARTBEAT)


async def test_maintenance_that_ends_in_protected_mode_makes_no_node_offline(
    registry: Registry,
) -> None:
    names = await register_fleet(registry, 20)
    async with registry.at_now() as session:
        for name in names[-2:]:
            await nodes.start_maintenance(
                session, name, note=None, until=time_after(90), caller=OPERATOR
            )
    await registry.work(100, *names[:5])
    async with registry.at_now() as session:
        await nodes.end_maintenance(session, names[-1], rules=RULES, note=None, caller=OPERATOR)
    for name in names[-2:]:
        assert await registry.status(name) == (DEGRADED, StatusReason.MAINTENANCE_ENDED)
    assert OFFLINE not in await registry.statuses()


async def test_repeatedly_killed_process_does_not_hide_dead_nodes(registry: Registry) -> None:
    """One process runs; another is killed and restarted whenever its record expires."""
    await registry.register("node-3")
    while registry.now < 5 * TTL:
        async with registry.at_now() as session:
            await sweep.sweep(session, uuid4(), RULES)
        await registry.work(10)
    assert (await registry.status("node-3"))[0] is OFFLINE


async def test_slow_process_does_not_hide_dead_nodes(registry: Registry) -> None:
    await registry.register("node-3")
    slow = uuid4()
    while registry.now < 5 * TTL:
        async with registry.at_now() as session:
            await sweep.sweep(session, slow, RULES)
        await registry.work(7, every=3.5)
    assert (await registry.status("node-3"))[0] is OFFLINE


@pytest.mark.parametrize("is_last", [True, False], ids=["the last one", "one of two"])
async def test_process_that_stops_causes_an_outage_only_if_it_was_the_last(
    registry: Registry, *, is_last: bool
) -> None:
    if not is_last:
        async with registry.at_now() as session:
            await sweep.sweep(session, uuid4(), RULES)
    async with registry.at_now() as session:
        await process_heartbeats.remove_process(session, registry.process)
    registry.now += 1
    registry.process = uuid4()
    assert ((await registry.sweep()).outage_since is not None) is is_last


async def test_stopped_process_does_not_block_the_sweeps_of_others(registry: Registry) -> None:
    stopped = uuid4()
    async with registry.at_now() as session:
        await sweep.sweep(session, stopped, RULES)
    registry.now += 3
    async with registry.at_now() as session:
        await sweep.sweep(session, stopped, RULES)
        await registry.work(20)
        assert (await asyncio.wait_for(registry.sweep(), timeout=2)).outage_since is None
