"""Whole fleets during outages, losses and days, in injected time on real SQL."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import RegistryMode
from db.registry import heartbeats, sweep
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from db.registry.sweep import SweepResult

BASE = datetime(2030, 1, 1, tzinfo=UTC)
RULES = LivenessRules(jitter=0)
SWEEP_SECONDS = 2
OVERDUE, TTL = 15, 35

_FLEET = """
INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason, status_since,
                   boot_id, boot_since, heard_at, heartbeat_interval_seconds)
SELECT 'node-' || n, 'node-' || n, 'production', 'worker', 'online', 'registered',
       registry_now(), 'boot', registry_now(), registry_now(), :interval
FROM generate_series(0, CAST(:nodes AS int) - 1) AS n
"""


class Fleet:
    """Nodes that send heartbeats as the test directs, and one process of the registry."""

    def __init__(self, database: Database, nodes: int, rules: LivenessRules = RULES) -> None:
        self.rules = rules
        self.database = database
        self.nodes = range(nodes)
        self.now = 0.0
        self.modes: list[tuple[float, RegistryMode]] = []
        self._process = uuid4()
        self._sequence = 0
        self._live = 0

    @asynccontextmanager
    async def at_now(self) -> AsyncIterator[AsyncSession]:
        async with self.database.write() as session:
            await session.execute(
                text("SELECT set_config('node_registry.now', :now, true)"),
                {"now": (BASE + timedelta(seconds=self.now)).isoformat()},
            )
            yield session

    async def begin(self) -> None:
        async with self.at_now() as session:
            await session.execute(text("DELETE FROM status_changes"))
            await session.execute(text("DELETE FROM nodes"))
            await session.execute(
                text("UPDATE registry_state SET revision = 0, changed_at = :at, mode_since = :at"),
                {"at": BASE},
            )
            await session.execute(text(_FLEET), {"nodes": len(self.nodes), "interval": 10})
        await self.analyze()

    async def analyze(self) -> None:
        """Do what autovacuum does within a minute of real time."""
        async with self.database.read() as session:
            await session.execute(text("VACUUM ANALYZE nodes"))

    async def beat(self, nodes: Iterable[int]) -> None:
        self._sequence += 1
        reports = [HeartbeatReport(f"node-{n}", "boot", self._sequence) for n in nodes]
        for batch in _split_into_batches(reports, 1000):
            async with self.at_now() as session:
                outcomes = await heartbeats.record_in_transaction(session, batch, self.rules)
            assert all(isinstance(outcome, HeartbeatAck) for outcome in outcomes)

    async def sweep(self) -> SweepResult:
        while True:
            async with self.at_now() as session:
                result = await sweep.sweep(session, self._process, self.rules)
            if result.mode_changed:
                self.modes.append((self.now, result.mode))
            if not result.has_more:
                return result

    async def beat_within_sweep(self) -> None:
        self._sequence += 1
        reports = [HeartbeatReport(f"node-{n}", "boot", self._sequence) for n in self.nodes]
        async with self.at_now() as session:
            await sweep.sweep(session, self._process, self.rules)
            await heartbeats.record_in_transaction(session, reports, self.rules)

    async def live(self, seconds: float, node_numbers: Sequence[int]) -> None:
        """Let each node send a heartbeat every 10 s, spread evenly, and sweep every 2 s."""
        slots = round(RULES.min_interval / SWEEP_SECONDS)
        for _ in range(round(seconds / SWEEP_SECONDS)):
            self.now += SWEEP_SECONDS
            slot = round(self.now / SWEEP_SECONDS) % slots
            await self.beat([n for n in node_numbers if n % slots == slot])
            await self.sweep()

    async def statuses(self) -> Counter[str]:
        async with self.database.read() as session:
            rows = await session.execute(text("SELECT status FROM nodes"))
            return Counter(row.status for row in rows)

    async def transitions(self) -> list[tuple[int, float, str]]:
        """Return each status change: the node, the time, and the new status."""
        async with self.database.read() as session:
            rows = await session.execute(
                text("""
                SELECT substr(n.node_id, 6)::int, extract(epoch FROM c.changed_at), c.status
                FROM status_changes c JOIN nodes n ON n.id = c.node_id
                WHERE c.previous_status <> c.status ORDER BY c.revision
                """)
            )
            return [(row[0], float(row[1]) - BASE.timestamp(), row[2]) for row in rows]


def _split_into_batches(
    reports: list[HeartbeatReport], size: int
) -> Iterable[list[HeartbeatReport]]:
    return (reports[i : i + size] for i in range(0, len(reports), size))


@pytest.fixture
async def fleet(database: Database, *, thorough: bool) -> Fleet:
    fleet = Fleet(database, 10_000 if thorough else 1_000)
    await fleet.begin()
    return fleet


@pytest.mark.timeout(600)
async def test_outage_of_the_registry_makes_no_node_offline(fleet: Fleet) -> None:
    await fleet.live(20, fleet.nodes)
    fleet.now += 300
    await fleet.live(2 * TTL, fleet.nodes)
    assert await fleet.transitions() == []
    assert fleet.modes == []


@pytest.mark.timeout(600)
async def test_registry_is_protected_first_when_most_nodes_vanish(fleet: Fleet) -> None:
    vanished = {n for n in fleet.nodes if n % 10 < 6}
    remaining = [n for n in fleet.nodes if n not in vanished]
    await fleet.live(20, fleet.nodes)
    vanished_at = fleet.now
    await fleet.live(OVERDUE + SWEEP_SECONDS, remaining)
    [(protected_at, mode)] = fleet.modes
    assert mode is RegistryMode.PROTECTED
    assert protected_at <= vanished_at + OVERDUE + SWEEP_SECONDS

    while fleet.now < protected_at + RULES.protect_max - SWEEP_SECONDS:
        await fleet.live(min(100, protected_at + RULES.protect_max - 2 - fleet.now), remaining)
    assert await fleet.statuses() == {"online": len(remaining), "degraded": len(vanished)}

    await fleet.live(SWEEP_SECONDS, remaining)
    offline_after = fleet.modes[-1][0] - vanished_at
    assert fleet.modes[1:] == [(protected_at + RULES.protect_max, RegistryMode.NORMAL)]
    assert await fleet.statuses() == {"online": len(remaining), "offline": len(vanished)}
    await fleet.live(2 * TTL, remaining)
    assert {n for n, _, status in await fleet.transitions() if status == "offline"} == vanished
    assert len(fleet.modes) == 2
    print(  # noqa: T201  # a figure of the report
        f"\n{len(vanished)} of {len(fleet.nodes)} vanished: PROTECTED after"
        f" {protected_at - vanished_at:.0f} s, all of them OFFLINE after {offline_after:.0f} s"
    )


@pytest.mark.timeout(600)
async def test_lossy_link_rarely_changes_the_status(database: Database, *, thorough: bool) -> None:
    nodes, hours = 50, 48 if thorough else 2
    fleet = Fleet(database, nodes)
    await fleet.begin()
    generator = random.Random(3)  # noqa: S311  # repeatable
    sent = 0
    while fleet.now < hours * 3600:
        fleet.now += 5
        await fleet.sweep()
        slot = sent % 2
        sent += 1
        await fleet.beat([n for n in fleet.nodes if n % 2 == slot and generator.random() >= 0.3])
    transitions = await fleet.transitions()
    by_hour = Counter((n, int(at // 3600)) for n, at, _ in transitions)
    later = [by_hour[n, hour] for n in fleet.nodes for hour in range(1, hours)]
    average = len(transitions) / nodes / hours
    print(  # noqa: T201  # a figure of the report
        f"\n30 % lost, {nodes} nodes, {hours} h: {average:.2f} transitions an hour for a node,"
        f" at most {max(by_hour.values())} in its first hour and {max(later)} in a later one"
    )
    assert average <= 2
    # Two before the last return to ONLINE, that return, a fall in two steps, and into FLAPPING.
    assert max(by_hour.values()) <= RULES.flap_transitions + 3
    assert sum(count > 2 for count in later) <= len(later) / 1000
    assert max(later) <= RULES.flap_transitions + 1  # released, two steps down, and FLAPPING again


@pytest.mark.timeout(600)
async def test_regular_heartbeats_never_change_the_status(
    database: Database, *, thorough: bool
) -> None:
    nodes, hours = (200, 24) if thorough else (20, 1)
    # A process that sweeps as rarely as nodes send heartbeats needs a longer timeout.
    fleet = Fleet(database, nodes, replace(RULES, process_timeout=15))
    await fleet.begin()
    while fleet.now < hours * 3600:
        fleet.now += RULES.min_interval
        await fleet.beat_within_sweep()
    assert await fleet.transitions() == []
    assert fleet.modes == []
