"""The heartbeat log is kept as long as configured, and rolled up before it is dropped."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import event, text
from structlog.types import EventDict

from db.core.database import Database
from db.retention import metrics_rollup, partitions
from graph.core.settings import Settings
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.fleet import beat, fetch_rows, register, wait_for_lock

DAY = 86400
HEARD = """
INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
SELECT date_trunc('day', now()) - days * interval '1 day' + n * interval '20min', node, 'online',
       jsonb_build_object('cpu_percent', n)
FROM generate_series(0, 11) AS n, unnest(CAST(:days AS int[])) AS days,
     unnest(CAST(:nodes AS uuid[])) AS node
"""
NODES = [UUID(int=n * 2**120) for n in range(8)]
HISTORY = """
SELECT now()::date - hour::date AS day, count(*), sum(heartbeats),
       min(cpu_percent_min), avg(cpu_percent_avg), max(cpu_percent_max)
FROM metrics_history GROUP BY 1 ORDER BY 1
"""
LOG = """
SELECT now()::date - timestamp::date AS day, count(*) FROM heartbeat_log GROUP BY 1 ORDER BY 1
"""


def expect_history(*days: int) -> list[tuple[Any, ...]]:
    """Return the history of the days when all of HEARD is rolled up: four hours of each node."""
    return [(day, 4 * len(NODES), 12 * len(NODES), 0, 5.5, 11) for day in days]


def make_housekeeping(
    database: Database, metrics: Metrics | None = None, **given: Any
) -> Housekeeping:
    return Housekeeping(database, Settings(**given), metrics or Metrics())


async def log_heartbeats(database: Database, *days: int) -> None:
    """Log heartbeats of all nodes so many days ago."""
    async with database.write() as session:
        await session.execute(text(HEARD), {"days": days, "nodes": NODES})
        await partitions.make_day_partitions(session)


def read_sample(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name)


async def test_old_days_are_dropped_and_their_history_stays(database: Database) -> None:
    await log_heartbeats(database, 1, 14, 15, 40)
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, LOG) == [(1, 96), (14, 96)]
    assert await fetch_rows(database, HISTORY) == expect_history(1, 14, 15, 40)
    assert await fetch_rows(database, "SELECT count(*), sum(heartbeats) FROM rolled_up_hours") == [
        (8, 192)
    ]


async def test_no_day_is_dropped_while_it_cannot_be_rolled_up(database: Database) -> None:
    await log_heartbeats(database, 15)
    async with database.write() as other:
        assert await metrics_rollup.try_lock(other)
        await make_housekeeping(database).run_once()
        assert await fetch_rows(database, LOG) == [(15, 96)]
        assert await fetch_rows(database, HISTORY) == []
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, LOG) == []
    assert await fetch_rows(database, HISTORY) == expect_history(15)


async def test_what_came_late_is_counted_before_its_day_is_dropped(database: Database) -> None:
    await log_heartbeats(database, 15)
    patient = make_housekeeping(database, heartbeat_log_max_age_seconds=30 * DAY)
    await patient.run_once()
    await log_heartbeats(database, 15)
    await patient.run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(15)
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, LOG) == []
    [(_, _, heartbeats, *measured)] = await fetch_rows(database, HISTORY)
    assert (heartbeats, measured) == (2 * 12 * len(NODES), [0, 5.5, 11])


@contextmanager
def cancel_at_statement(database: Database, place: int, task: asyncio.Task[None]) -> Iterator[None]:
    """Cancel the task when so many statements were sent to the database."""
    told = 0

    def tell(*_: Any) -> None:
        nonlocal told
        told += 1
        if told == place:
            task.cancel()

    event.listen(database.engine.sync_engine, "before_cursor_execute", tell)
    try:
        yield
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", tell)


async def test_upkeep_that_is_ended_anywhere_is_gone_on_with(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_rollup, "_MAX_ROWS_AT_ONCE", 10)
    await log_heartbeats(database, 1, 15, 16)
    for place in range(1, 1000):
        task = asyncio.create_task(make_housekeeping(database).run_once())
        with cancel_at_statement(database, place, task):
            await asyncio.wait([task])
        days = [day for day, _ in await fetch_rows(database, LOG)]
        assert {1, *days} | {day for day, *_ in await fetch_rows(database, HISTORY)} == {1, 15, 16}
        if not task.cancelled():
            break
    assert await fetch_rows(database, LOG) == [(1, 96)]
    assert await fetch_rows(database, HISTORY) == expect_history(1, 15, 16)


async def test_processes_that_do_it_at_once_do_not_disturb_one_another(
    database: Database,
) -> None:
    await log_heartbeats(database, 1, 15, 16)
    at_once = [make_housekeeping(database) for _ in range(3)]
    async with asyncio.timeout(30):
        while await fetch_rows(database, HISTORY) != expect_history(1, 15, 16):
            await asyncio.gather(*(process.run_once() for process in at_once))
    assert await fetch_rows(database, LOG) == [(1, 96)]


async def test_old_months_of_the_history_are_dropped(database: Database) -> None:
    await log_heartbeats(database, 1, 70, 500)
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(1, 70)
    await make_housekeeping(database, metrics_history_max_age_seconds=32 * DAY).run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(1)


async def test_heartbeats_without_a_day_are_told_of(
    database: Database, logged: list[EventDict]
) -> None:
    metrics = Metrics()
    name = "node_registry_misplaced_heartbeats"
    keeper = make_housekeeping(database, metrics)
    await keeper.run_once()
    assert read_sample(metrics.registry, name) == 0
    assert not [e for e in logged if e["event"] == "heartbeat_log.misplaced"]
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                " VALUES (now() + interval '30 days', gen_random_uuid(), 'online')"
            )
        )
    await keeper.run_once()
    assert read_sample(metrics.registry, name) == 1
    assert {"event": "heartbeat_log.misplaced", "log_level": "warning", "heartbeats": 1} in logged


async def test_what_waits_to_be_rolled_up_is_told(database: Database) -> None:
    metrics = Metrics()
    keeper = make_housekeeping(database, metrics)
    await log_heartbeats(database, 1)
    name = "node_registry_roll_up_lag_seconds"
    async with database.write() as other:
        assert await metrics_rollup.try_lock(other)
        await keeper.run_once()
        assert read_sample(metrics.registry, name) == 4 * 3600
    await keeper.run_once()
    assert read_sample(metrics.registry, name) == 0


async def test_what_cannot_be_done_now_keeps_nothing_else_from_being_done(
    database: Database, logged: list[EventDict]
) -> None:
    await log_heartbeats(database, 15)
    await register(database, "node-3")
    async with database.write() as reader:
        await reader.execute(text("LOCK TABLE ONLY heartbeat_log IN ACCESS SHARE MODE"))
        keeping = asyncio.create_task(make_housekeeping(database).run_once())
        await wait_for_lock(database)
        await beat(database, "node-3")
        await keeping
    assert [e["step"] for e in logged if e["event"] == "housekeeping.unavailable"] == [
        "drop_old_days"
    ]
    assert await fetch_rows(database, HISTORY) == expect_history(15)
    await make_housekeeping(database).run_once()
    assert [day for day, _ in await fetch_rows(database, LOG)] == [0]
