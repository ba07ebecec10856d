"""What one node may have written: its heartbeats' pace, its changes, its bytes a day."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import ProfileType
from db.core.errors import BadInput, RateLimited, RegistryError, StaleBoot
from db.registry import heartbeats, registration
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.node_limits import BURST_CHANGES, BURST_INTERVALS, BudgetExceeded, NodeLimits
from db.registry.profiles import ProfileContent
from tests.support.fleet import (
    AGENT,
    OVERDUE,
    RULES,
    age,
    clear,
    fetch_rows,
    get_node,
    limit_examples,
    make_registration,
    make_report,
    register,
)
from tests.support.statements import record_statements

FOUR = NodeLimits(heartbeats_per_interval=4)
AT_ONCE = 4 * BURST_INTERVALS
MAX_AT_ONCE = AT_ONCE + 2
"""The intervals are drawn at random."""
COUNT_LOGGED = "SELECT count(*) FROM heartbeat_log"


async def record(
    database: Database, *reports: HeartbeatReport, limits: NodeLimits = FOUR
) -> list[HeartbeatAck | RegistryError]:
    return await heartbeats.record_batch(database, reports, RULES, limits)


async def record_at(
    database: Database, now: datetime, reports: Sequence[HeartbeatReport], limits: NodeLimits = FOUR
) -> list[HeartbeatAck | RegistryError]:
    """Record by a clock of our own."""
    async with database.write() as session:
        await session.execute(
            text("SELECT set_config('node_registry.now', :now, true)"), {"now": now.isoformat()}
        )
        return await heartbeats.record_in_transaction(session, reports, RULES, limits)


def count_limited(outcomes: Sequence[object]) -> int:
    return sum(isinstance(outcome, RateLimited) for outcome in outcomes)


async def test_a_node_s_heartbeats_beyond_a_few_times_its_pace_are_rate_limited(
    database: Database,
) -> None:
    await register(database, "a")
    outcomes = [(await record(database, make_report("a", n)))[0] for n in range(2 * AT_ONCE)]
    assert count_limited(outcomes[:AT_ONCE]) == 0
    assert count_limited(outcomes[MAX_AT_ONCE:]) == 2 * AT_ONCE - MAX_AT_ONCE
    error = outcomes[-1]
    assert isinstance(error, RateLimited)
    interval = (await get_node(database, "a")).heartbeat_interval_seconds
    assert 0 < float(str(error.details["retryAfterSeconds"])) <= interval / 4
    accepted = len(outcomes) - count_limited(outcomes)
    assert await fetch_rows(database, COUNT_LOGGED) == [(accepted,)]


async def test_one_node_s_excess_in_a_batch_fails_no_other_heartbeat(database: Database) -> None:
    for node_id in ("a", "b", "c"):
        await register(database, node_id)
    outcomes = await record(
        database,
        make_report("b", 1),
        *(make_report("a", n) for n in range(AT_ONCE + 20)),
        make_report("c", 1),
    )
    assert [type(outcome) for outcome in (outcomes[0], outcomes[-1])] == [HeartbeatAck] * 2
    assert MAX_AT_ONCE >= AT_ONCE + 20 - count_limited(outcomes) >= AT_ONCE


async def test_a_gateway_s_whole_fleet_is_heard_at_its_pace(database: Database) -> None:
    fleet = [f"node-{n}" for n in range(100)]
    for node_id in fleet:
        await register(database, node_id)
    for sequence in range(AT_ONCE):
        reports = [make_report(node_id, sequence) for node_id in fleet]
        assert count_limited(await record(database, *reports)) == 0


async def test_a_repeated_heartbeat_is_acknowledged_again_and_costs_nothing(
    database: Database,
) -> None:
    """Its reply was lost."""
    await register(database, "a")
    for _ in range(3 * AT_ONCE):
        [outcome] = await record(database, make_report("a", 7))
        assert isinstance(outcome, HeartbeatAck)
    outcomes = [(await record(database, make_report("a", 8 + n)))[0] for n in range(AT_ONCE - 1)]
    assert count_limited(outcomes) == 0


async def test_many_heartbeats_of_one_node_in_a_batch_take_few_statements(
    database: Database,
) -> None:
    await register(database, "a")
    await register(database, "b")
    with record_statements(database) as statements:
        outcomes = await record(
            database, *(make_report("a", 1) for _ in range(1000)), make_report("b", 1)
        )
    assert len(statements) < 30
    assert count_limited(outcomes) > 900
    assert isinstance(outcomes[0], HeartbeatAck)
    assert isinstance(outcomes[-1], HeartbeatAck)


async def test_a_rate_limited_heartbeat_changes_nothing(database: Database) -> None:
    await register(database, "a")
    await record(database, *(make_report("a", n) for n in range(2 * AT_ONCE)))
    before = await get_node(database, "a")
    for report in (make_report("a", 99), make_report("a", 100, degraded=True)):
        [outcome] = await record(database, report)
        assert isinstance(outcome, RateLimited)
    assert await get_node(database, "a") == before


async def test_a_replaced_run_is_told_so_whatever_its_pace(database: Database) -> None:
    await register(database, "a")
    outcomes = [
        (await record(database, make_report("a", n, boot_id="boot-0")))[0]
        for n in range(2 * AT_ONCE)
    ]
    assert {type(outcome) for outcome in outcomes} == {StaleBoot}


async def test_a_longer_interval_of_the_past_does_not_hold_a_node_up(database: Database) -> None:
    await register(database, "a")
    now = datetime(2100, 1, 1, tzinfo=UTC)
    async with database.write() as session:
        await session.execute(text("UPDATE nodes SET heartbeat_interval_seconds = 600"))
    await record_at(database, now, [make_report("a", n) for n in range(MAX_AT_ONCE)])
    interval = (await get_node(database, "a")).heartbeat_interval_seconds
    assert interval < 12
    later = now + timedelta(seconds=1.1 * interval / 4)
    [outcome] = await record_at(database, later, [make_report("a", 99)])
    assert isinstance(outcome, HeartbeatAck)


async def test_a_clock_that_is_set_back_holds_no_heartbeat_up(database: Database) -> None:
    await register(database, "a")
    now = datetime(2100, 1, 1, tzinfo=UTC)
    await record_at(database, now, [make_report("a", n) for n in range(MAX_AT_ONCE)])
    for n in range(2 * AT_ONCE):
        earlier = now - timedelta(hours=9) + n * timedelta(seconds=RULES.min_interval)
        [outcome] = await record_at(database, earlier, [make_report("a", 100 + n)])
        assert isinstance(outcome, HeartbeatAck)


async def test_a_clock_that_is_set_back_holds_no_registration_up(database: Database) -> None:
    await register(database, "a")
    async with database.write() as session:
        await session.execute(text("UPDATE nodes SET changes_paid_until = now() + interval '9 h'"))
    limits = NodeLimits(changes_per_minute=1)
    await register_within(database, "a", limits, metadata={"n": 1})


@given(
    waits=st.lists(st.floats(0, 40), max_size=40),
    per_interval=st.integers(1, 6),
    per_call=st.integers(1, 8),
)
@limit_examples(40)
async def test_as_many_are_accepted_as_the_rate_and_the_burst_allow(
    database: Database, waits: list[float], per_interval: int, per_call: int
) -> None:
    limits = NodeLimits(heartbeats_per_interval=per_interval)
    async with database.write() as session:
        await clear(session)
    await register(database, "a")
    start = now = datetime(2100, 1, 1, tzinfo=UTC)
    sequence = accepted = 0
    shortest = RULES.min_interval
    for wait in waits:
        now += timedelta(seconds=wait)
        reports = [make_report("a", sequence + n) for n in range(per_call)]
        sequence += per_call
        outcomes = await record_at(database, now, reports, limits)
        accepted += len(outcomes) - count_limited(outcomes)
        elapsed = (now - start).total_seconds()
        burst = BURST_INTERVALS * 1.1**2 * per_interval + 1
        assert accepted <= burst + elapsed * per_interval / shortest
        if wait > shortest * 1.1 / per_interval:
            assert isinstance(outcomes[0], HeartbeatAck)


LARGE = {"extra": {"noise": "x" * 10_000}}


async def test_beyond_its_bytes_of_the_day_a_node_keeps_its_lease_without_metrics(
    database: Database,
) -> None:
    await register(database, "a")
    limits = NodeLimits(bytes_per_day=100_000)
    outcomes = [
        (await record(database, make_report("a", n, metrics=LARGE), limits=limits))[0]
        for n in range(30)
    ]
    dropped = [outcome.metrics_dropped for outcome in outcomes if isinstance(outcome, HeartbeatAck)]
    assert len(dropped) == 30
    assert dropped == sorted(dropped)
    assert dropped.count(False) == 6
    [(size,)] = await fetch_rows(database, "SELECT sum(length(metrics::text)) FROM heartbeat_log")
    assert size < 100_000
    node = await get_node(database, "a")
    assert node.last_sequence == 29
    assert node.heard_at == outcomes[-1].received_at  # type: ignore[union-attr]


async def test_the_next_day_has_its_own_bytes(database: Database) -> None:
    await register(database, "a")
    limits = NodeLimits(bytes_per_day=35_000)
    evening = datetime(2100, 1, 1, 23, 59, 50, tzinfo=UTC)
    reports = [make_report("a", n, metrics=LARGE) for n in range(6)]
    first = await record_at(database, evening, reports[:4], limits)
    then = await record_at(database, evening + timedelta(seconds=20), reports[4:], limits)
    assert [outcome.metrics_dropped for outcome in first + then] == [  # type: ignore[union-attr]
        *(False, False, True, True),
        *(False, False),
    ]


@pytest.mark.parametrize("metrics", [None, {}])
async def test_a_heartbeat_without_metrics_drops_none(
    database: Database, metrics: dict[str, object] | None
) -> None:
    await register(database, "a")
    [outcome] = await record(
        database, make_report("a", 1, metrics=metrics), limits=NodeLimits(bytes_per_day=1)
    )
    assert isinstance(outcome, HeartbeatAck)
    assert not outcome.metrics_dropped


async def list_entries(database: Database) -> list[tuple[Any, ...]]:
    return await fetch_rows(
        database, "SELECT action, before, after FROM audit_log ORDER BY recorded_at, id"
    )


async def register_within(
    database: Database, node_id: str, limits: NodeLimits, boot_id: str = "boot-1", **fields: Any
) -> None:
    async with database.write() as session:
        await registration.register(
            session,
            make_registration(node_id, boot_id, **fields),
            rules=RULES,
            caller=AGENT,
            limits=limits,
        )


async def test_a_registration_s_entry_holds_what_changed(database: Database) -> None:
    models = [{"name": f"model-{n}", "digest": "x" * 64} for n in range(200)]
    facts = {"os": "linux", "models": models}
    await register(database, "a", capabilities=facts, metadata={"rack": 7})
    await register(database, "a", capabilities=facts | {"os": "bsd"}, metadata={"rack": 7})
    _, created = (await list_entries(database))[0][1:]
    assert created["capabilities"]["models"]["bytes"] > 10_000
    status = {"status": "online", "statusReason": "registered"}
    assert (await list_entries(database))[1] == (
        "node.register",
        {"capabilities": {"os": "linux"}, **status},
        {"capabilities": {"os": "bsd"}, **status},
    )


async def test_drift_of_what_is_measured_is_stored_and_is_no_change(database: Database) -> None:
    for free in (1000, 1010, 997):
        await register(
            database,
            "a",
            capabilities={"memoryFreeMb": free, "disks": [{"name": "sda", "usedPercent": free}]},
            metadata={"load": free / 7},
        )
    assert (await get_node(database, "a")).capabilities["memoryFreeMb"] == 997
    assert len(await list_entries(database)) == 1


async def test_a_registration_that_changes_nothing_is_never_rate_limited(
    database: Database,
) -> None:
    limits = NodeLimits(changes_per_minute=1, bytes_per_day=1)
    profile = ProfileContent("llm", ProfileType.LLM, {"model": "x"})
    for _ in range(BURST_CHANGES + 5):
        await register_within(
            database, "a", limits, capabilities={"models": ["x"]}, profiles=[profile]
        )
    assert len(await list_entries(database)) == 2


@pytest.mark.parametrize("what", ["metadata", "boot", "profile", "drift"])
async def test_registrations_that_change_something_are_limited_per_node(
    database: Database, what: str
) -> None:
    limits = NodeLimits(changes_per_minute=1)

    async def change(node_id: str, n: int) -> None:
        content = ProfileContent("llm", ProfileType.LLM, {"n": n})
        kinds: dict[str, dict[str, Any]] = {
            "metadata": {"metadata": {"n": n}},
            "boot": {"hostname": "h", "replaces_boot_id": f"boot-{n - 1}"},
            "profile": {"profiles": [content]},
            "drift": {"metadata": {"load": n}},
        }
        boot_id = f"boot-{n}" if what == "boot" else "boot-1"
        await register_within(database, node_id, limits, boot_id, **kinds[what])

    for n in range(BURST_CHANGES + 1):
        await change("a", n)
    before = await list_entries(database)
    with pytest.raises(RateLimited) as rejection:
        await change("a", BURST_CHANGES + 1)
    assert 0 < float(str(rejection.value.details["retryAfterSeconds"])) <= 60
    assert await list_entries(database) == before
    await change("b", 0)


async def test_a_node_that_used_up_its_bytes_may_restart_and_not_change(
    database: Database,
) -> None:
    limits = NodeLimits(bytes_per_day=100_000)
    for n in range(5):
        with suppress(BudgetExceeded):
            await register_within(database, "a", limits, metadata={"noise": f"{n}" * 30_000})
    with pytest.raises(BudgetExceeded) as rejection:
        await register_within(database, "a", limits, metadata={"noise": "y" * 30_000})
    assert 0 < float(str(rejection.value.details["retryAfterSeconds"])) <= 86_400
    restart = {"hostname": None, "replaces_boot_id": "boot-1"}
    await age(database, OVERDUE, "a")
    await register_within(database, "a", limits, "boot-2", **restart)
    [outcome] = await record(database, make_report("a", 1, "boot-2"), limits=limits)
    assert isinstance(outcome, HeartbeatAck)


async def test_a_registration_leaves_a_node_no_more_than_some_profiles(
    database: Database,
) -> None:
    def make_profiles(first: int) -> list[ProfileContent]:
        numbers = range(first, first + 100)
        return [ProfileContent(f"profile-{n}", ProfileType.LLM, {}) for n in numbers]

    for first in (0, 100, 0):
        await register(database, "a", profiles=make_profiles(first))
    with pytest.raises(BadInput, match="at most 256"):
        await register(database, "a", profiles=make_profiles(200))
    await register(database, "a", profiles=make_profiles(156))
    assert await fetch_rows(database, "SELECT count(*) FROM node_profiles") == [(256,)]
