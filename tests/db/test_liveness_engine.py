"""The engine on real PostgreSQL, compared with a model of its rules, under random events."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from db.core.database import Database
from db.core.enums import StatusReason
from db.core.errors import NodeIdTaken
from db.registry import heartbeats, nodes, process_heartbeats, registration, sweep
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from tests.support.fleet import AGENT, OPERATOR, make_registration
from tests.support.liveness_model import Model, Row

BASE = datetime(2030, 1, 1, tzinfo=UTC)
RULES = LivenessRules(
    process_timeout=20,
    protect_min_nodes=4,
    protect_max=90,
    flap_window=600,
    flap_steady=60,
    remove_offline_after={"ephemeral": 60, "brief": 20},
    jitter=0,
)
TTL = 35
NODES = [f"node-{n}" for n in range(7)]
LABELS = {"node-0": ("ephemeral",), "node-1": ("ephemeral", "brief", "other")}
BOOTS = ["boot-a", "boot-b", "boot-c"]
HOSTS = ["host-1", "host-2"]
PROCESSES = ["first", "second"]

# At the limits of the interval, the grace, the TTL, the process timeout and the flap damping.
WITHIN_TIMEOUT = st.sampled_from([0, 1, 5, 10, 14, 15, 16, 19, 20])
SILENCES = st.sampled_from([1, 4, 5, 10, 15, 20, 21, 34, 35, 36, 59, 60, 90, 240])
HOURS = st.sampled_from([-9, -5, -2, 2, 5, 9])


def _make_seconds_sql(instant: str) -> str:
    return f"extract(epoch FROM {instant} - CAST(:base AS timestamptz))"


READ_STATE = text(f"""
SELECT json_build_object(
    'state', (SELECT json_build_array(mode, {_make_seconds_sql("mode_since")},
                                      {_make_seconds_sql("lease_floor")}, revision)
              FROM registry_state),
    'nodes', (SELECT json_object_agg(node_id, json_build_array(
                         status, status_reason, {_make_seconds_sql("status_since")}))
              FROM nodes WHERE removed_at IS NULL),
    'rows', (SELECT json_agg(json_build_array(
                        c.revision, n.node_id, c.previous_status, c.status, c.reason, c.actor,
                        {_make_seconds_sql("c.changed_at")}) ORDER BY c.revision)
             FROM status_changes c JOIN nodes n ON n.id = c.node_id WHERE c.revision > :revision))
""")  # noqa: S608  # it contains no outside input

RESET_STATEMENTS = (
    "DELETE FROM status_changes",
    "DELETE FROM nodes",
    f"""UPDATE registry_state SET revision = 0, changed_at = '{BASE.isoformat()}',
        mode_since = '{BASE.isoformat()}', lease_floor = '{BASE.isoformat()}'""",  # noqa: S608  # ours
)


class Engine:
    """The engine under test. Each example is one transaction, rolled back at its end."""

    def __init__(self, url: URL) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._database = Database(url)
        self._connection: AsyncConnection = self._runner.run(self._connect())

    async def _connect(self) -> AsyncConnection:
        async with self._database.write() as session:
            for statement in RESET_STATEMENTS:
                await session.execute(text(statement))
        return await self._database.engine.connect()

    def run(self, now: int, work: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        return self._runner.run(self._run(now, work))

    async def _run(self, now: int, work: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        async with AsyncSession(self._connection, expire_on_commit=False) as session:
            await session.execute(
                text("SELECT set_config('node_registry.now', :now, true)"),
                {"now": (BASE + timedelta(seconds=now)).isoformat()},
            )
            return await work(session)

    def read_state(self, revision: int) -> dict[str, Any]:
        result = self._runner.run(
            self._connection.execute(READ_STATE, {"revision": revision, "base": BASE})
        )
        state: dict[str, Any] = result.scalar_one()
        return state

    def begin(self) -> None:
        self._runner.run(self._begin())

    async def _begin(self) -> None:
        await self._connection.begin()

    def roll_back(self) -> None:
        self._runner.run(self._connection.rollback())

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.run(self._database.close())
        self._runner.close()


class LivenessMachine(RuleBasedStateMachine):
    """Applies the same steps to the engine and the model; clock jumps leave `true_now` alone."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        engine.begin()
        self.engine = engine
        self.model = Model(RULES)
        self.true_now = 0
        self.sweeps: list[int] = []
        self.last_heard: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        self.runs = dict.fromkeys(PROCESSES, 0)
        self.revision = 0

    def teardown(self) -> None:
        self.engine.roll_back()

    @initialize(count=st.integers(2, len(NODES)))
    def begin(self, count: int) -> None:
        for node_id in NODES[:count]:
            self._register(node_id, BOOTS[0], HOSTS[0], None)
        self._sweep(PROCESSES[0])

    @rule(
        seconds=WITHIN_TIMEOUT,
        silent=st.frozensets(st.sampled_from(NODES)),
        process=st.sampled_from(PROCESSES),
    )
    def work(self, seconds: int, silent: frozenset[str], process: str) -> None:
        """Let time pass while most nodes send heartbeats and one process sweeps."""
        self._pass_time(seconds)
        self._send_newer_heartbeats(set(self.model.nodes) - silent)
        self._sweep(process)

    @rule(
        count=st.integers(1, 4),
        seconds=WITHIN_TIMEOUT,
        node_ids=st.frozensets(st.sampled_from(NODES), max_size=3),
    )
    def work_with_few_nodes(self, count: int, seconds: int, node_ids: frozenset[str]) -> None:
        """Let few nodes send heartbeats for a while, and both processes sweep."""
        for n in range(count):
            self._pass_time(seconds)
            self._send_newer_heartbeats(node_ids)
            self._sweep(PROCESSES[n % 2])

    @rule(node_id=st.sampled_from(NODES), count=st.integers(2, 4))
    def node_is_repeatedly_late(self, node_id: str, count: int) -> None:
        """Let all nodes send heartbeats, one of them repeatedly late."""
        for _ in range(count):
            self._pass_time(15)
            self._send_newer_heartbeats(set(self.model.nodes) - {node_id})
            self._sweep(PROCESSES[0])
            self._send_newer_heartbeats({node_id})

    @rule(
        reports=st.lists(
            st.tuples(
                st.sampled_from([*NODES, "unknown"]),
                st.sampled_from(["newer", "doubled", "older", "stale boot"]),
                st.booleans(),
                st.sampled_from([1.0, 2.0]),
            ),
            min_size=1,
            max_size=5,
        )
    )
    def heartbeats(self, reports: list[tuple[str, str, bool, float]]) -> None:
        self._send_heartbeats(reports)

    @rule(seconds=SILENCES)
    def silence(self, seconds: int) -> None:
        """Let time pass without heartbeats and sweeps."""
        self._pass_time(seconds)

    @rule(process=st.sampled_from(PROCESSES))
    def sweep(self, process: str) -> None:
        self._sweep(process)

    @rule(hours=HOURS)
    def clock_jumps(self, hours: int) -> None:
        self.model.now += hours * 3600

    @rule(process=st.sampled_from(PROCESSES), cleanly=st.booleans())
    def process_ends(self, process: str, *, cleanly: bool) -> None:
        """End a process; another one takes its place."""
        if cleanly:
            name = self._get_process_name(process)
            self.engine.run(
                self.model.now,
                lambda session: process_heartbeats.remove_process(session, _make_uuid(name)),
            )
            self.model.leave(name)
        self.runs[process] += 1
        self._compare()

    @rule(
        node_id=st.sampled_from(NODES),
        boot=st.sampled_from(BOOTS),
        host=st.sampled_from(HOSTS),
        replaces=st.sampled_from([None, *BOOTS]),
    )
    def register(self, node_id: str, boot: str, host: str, replaces: str | None) -> None:
        self._register(node_id, boot, host, replaces)

    @precondition(lambda self: self.model.nodes)
    @rule(data=st.data(), until=st.none() | st.sampled_from([1, 15, 40, 300]))
    def maintenance_starts(self, data: st.DataObject, until: int | None) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.model.nodes)))
        end = None if until is None else self.model.now + until
        self.engine.run(
            self.model.now,
            lambda session: nodes.start_maintenance(
                session,
                node_id,
                note=None,
                until=None if end is None else BASE + timedelta(seconds=end),
                caller=OPERATOR,
            ),
        )
        self.model.start_maintenance(node_id, end)
        self._compare()

    @precondition(lambda self: self.model.nodes)
    @rule(data=st.data())
    def maintenance_ends(self, data: st.DataObject) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.model.nodes)))
        self.engine.run(
            self.model.now,
            lambda session: nodes.end_maintenance(
                session, node_id, rules=RULES, note=None, caller=OPERATOR
            ),
        )
        self.model.end_maintenance(node_id)
        self._compare()

    @precondition(lambda self: len(self.model.nodes) > 3)
    @rule(data=st.data())
    def deregister(self, data: st.DataObject) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.model.nodes)))
        self.engine.run(
            self.model.now,
            lambda session: nodes.deregister(session, node_id, note=None, caller=OPERATOR),
        )
        self.model.deregister(node_id)
        self._compare()

    def _send_newer_heartbeats(self, node_ids: Iterable[str]) -> None:
        self._send_heartbeats([(node_id, "newer", False, 1.0) for node_id in sorted(node_ids)])

    def _get_process_name(self, process: str) -> str:
        return f"{process} {self.runs[process]}"

    def _pass_time(self, seconds: int) -> None:
        self.true_now += seconds
        self.model.now += seconds

    def _sweep(self, process: str) -> None:
        name = self._get_process_name(process)
        result = self.engine.run(
            self.model.now, lambda session: sweep.sweep(session, _make_uuid(name), RULES)
        )
        mode_before = self.model.mode
        self.model.sweep(name)
        self.sweeps.append(self.true_now)
        assert result.mode == self.model.mode
        assert result.mode_changed == (self.model.mode != mode_before)
        if result.mode_changed and result.mode == "protected":
            assert result.live_nodes >= RULES.protect_min_nodes
        rows = self._compare()
        assert result.changed_nodes + result.removed_nodes == len(rows)
        for row in rows:
            if row.status == "offline" and row.reason != "deregistered":
                assert result.mode == "normal"
                self._assert_processes_ran_for_ttl(row)

    def _assert_processes_ran_for_ttl(self, row: Row) -> None:
        """Assert that a node went OFFLINE only after processes ran for its TTL, by true time."""
        ttl_ago = self.true_now - TTL
        assert self.last_heard[row.node_id] <= ttl_ago, row
        since = self.true_now
        for earlier in reversed(self.sweeps):
            assert since - earlier <= RULES.process_timeout, row
            since = earlier
            if since <= ttl_ago:
                return
        pytest.fail(f"{row} before the registry ran for a TTL")

    def _register(self, node_id: str, boot: str, host: str, replaces: str | None) -> None:
        labels = LABELS.get(node_id, ())

        async def register_node(session: AsyncSession) -> str:
            request = make_registration(
                node_id, boot, hostname=host, replaces_boot_id=replaces, labels=labels
            )
            try:
                _, created = await registration.register(
                    session, request, rules=RULES, caller=AGENT
                )
            except NodeIdTaken as error:
                return error.code
            return "created" if created else "registered"

        outcome = self.engine.run(self.model.now, register_node)
        assert outcome == self.model.register(
            node_id, boot, host=host, replaces=replaces, labels=labels
        )
        if outcome != NodeIdTaken.code:
            self.last_heard[node_id] = self.true_now
        self._compare()

    def _send_heartbeats(self, cases: list[tuple[str, str, bool, float]]) -> None:
        stretch = cases[0][3] if cases else 1.0
        reports = [
            self._report(node_id, kind, degraded=degraded) for node_id, kind, degraded, _ in cases
        ]
        rules = replace(RULES, stretch=stretch)
        if not reports:
            return
        outcomes = self.engine.run(
            self.model.now,
            lambda session: heartbeats.record_in_transaction(session, reports, rules),
        )
        for report, outcome, (_, kind, _, _) in zip(reports, outcomes, cases, strict=True):
            expected = self.model.heartbeat(
                report.node_id,
                report.boot_id,
                report.sequence,
                degraded=report.degraded,
                interval=int(rules.interval),
            )
            if isinstance(outcome, HeartbeatAck):
                assert outcome.status == expected
                if kind == "newer":
                    self.last_heard[report.node_id] = self.true_now
            else:
                assert outcome.code == expected
        self._compare()

    def _report(self, node_id: str, kind: str, *, degraded: bool) -> HeartbeatReport:
        node = self.model.nodes.get(node_id)
        boot = node.boot if node else BOOTS[0]
        if kind == "stale boot":
            boot = BOOTS[BOOTS.index(boot) - 1]
        last = self.sequences.get(node_id, 0)
        if kind == "newer":
            self.sequences[node_id] = last + 1
        sequence = {"doubled": last, "older": max(last - 1, 0)}.get(kind, last + 1)
        return HeartbeatReport(node_id, boot, sequence, degraded=degraded, actor="agent")

    def _compare(self) -> list[Row]:
        """Compare the engine with the model; return the new rows of the change log."""
        state = self.engine.read_state(self.revision)
        mode, mode_since, floor, revision = state["state"]
        model = self.model
        assert (mode, mode_since, floor) == (model.mode, model.mode_since, model.floor)
        assert {
            node_id: (status, reason, since)
            for node_id, (status, reason, since) in (state["nodes"] or {}).items()
        } == {node.node_id: (node.status, node.reason, node.since) for node in model.nodes.values()}
        raw_rows = state["rows"] or []
        assert [row[0] for row in raw_rows] == list(range(self.revision + 1, revision + 1))
        rows = [Row(*row[1:]) for row in raw_rows]
        assert sorted(rows, key=_get_node_id) == sorted(
            model.log[self.revision :], key=_get_node_id
        )
        for row in rows:
            started, ended = StatusReason.MAINTENANCE_STARTED, StatusReason.MAINTENANCE_ENDED
            assert (row.status == "maintenance") == (row.reason == started)
            if row.previous == "maintenance":
                assert row.reason in {started, ended, "deregistered"}
        self.revision = revision
        return rows


def _get_node_id(row: Row) -> str:
    return row.node_id


def _make_uuid(name: str) -> UUID:
    return uuid5(UUID(int=0), name)


@pytest.fixture
def engine(database_url: URL) -> Iterator[Engine]:
    engine = Engine(database_url)
    yield engine
    engine.close()


@pytest.mark.timeout(3600)
def test_engine_equals_the_model_after_any_events(engine: Engine, *, thorough: bool) -> None:
    run_state_machine_as_test(
        lambda: LivenessMachine(engine),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=2000 if thorough else 100,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
