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
INSERT_HEARTBEATS = """
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
    """Return the history of the days after the roll-up: four hours of each node."""
    return [(day, 4 * len(NODES), 12 * len(NODES), 0, 5.5, 11) for day in days]


def make_housekeeping(
    database: Database, metrics: Metrics | None = None, **settings: Any
) -> Housekeeping:
    return Housekeeping(database, Settings(**settings), metrics or Metrics())


async def log_heartbeats(database: Database, *days: int) -> None:
    """Log heartbeats of all nodes on each day, given as the number of days ago."""
    async with database.write() as session:
        await session.execute(text(INSERT_HEARTBEATS), {"days": days, "nodes": NODES})
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


async def test_day_is_not_dropped_before_it_is_rolled_up(database: Database) -> None:
    await log_heartbeats(database, 15)
    async with database.write() as other:
        assert await metrics_rollup.try_lock(other)
        await make_housekeeping(database).run_once()
        assert await fetch_rows(database, LOG) == [(15, 96)]
        assert await fetch_rows(database, HISTORY) == []
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, LOG) == []
    assert await fetch_rows(database, HISTORY) == expect_history(15)


async def test_late_heartbeats_are_rolled_up_before_their_day_is_dropped(
    database: Database,
) -> None:
    await log_heartbeats(database, 15)
    long_retention = make_housekeeping(database, heartbeat_log_max_age_seconds=30 * DAY)
    await long_retention.run_once()
    await log_heartbeats(database, 15)
    await long_retention.run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(15)
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, LOG) == []
    [(_, _, heartbeats, *measures)] = await fetch_rows(database, HISTORY)
    assert (heartbeats, measures) == (2 * 12 * len(NODES), [0, 5.5, 11])


@contextmanager
def cancel_at_statement(database: Database, place: int, task: asyncio.Task[None]) -> Iterator[None]:
    """Cancel the task when it sends its statement number `place`."""
    statement_count = 0

    def count_statement(*_: Any) -> None:
        nonlocal statement_count
        statement_count += 1
        if statement_count == place:
            task.cancel()

    event.listen(database.engine.sync_engine, "before_cursor_execute", count_statement)
    try:
        yield
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", count_statement)


async def test_housekeeping_cancelled_at_any_statement_is_completed_later(
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


async def test_concurrent_housekeeping_of_several_processes_succeeds(
    database: Database,
) -> None:
    await log_heartbeats(database, 1, 15, 16)
    processes = [make_housekeeping(database) for _ in range(3)]
    async with asyncio.timeout(30):
        while await fetch_rows(database, HISTORY) != expect_history(1, 15, 16):
            await asyncio.gather(*(housekeeping.run_once() for housekeeping in processes))
    assert await fetch_rows(database, LOG) == [(1, 96)]


async def test_old_months_of_the_history_are_dropped(database: Database) -> None:
    await log_heartbeats(database, 1, 70, 500)
    await make_housekeeping(database).run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(1, 70)
    await make_housekeeping(database, metrics_history_max_age_seconds=32 * DAY).run_once()
    assert await fetch_rows(database, HISTORY) == expect_history(1)


async def test_misplaced_heartbeats_are_counted_and_logged(
    database: Database, logged: list[EventDict]
) -> None:
    metrics = Metrics()
    name = "node_registry_misplaced_heartbeats"
    housekeeping = make_housekeeping(database, metrics)
    await housekeeping.run_once()
    assert read_sample(metrics.registry, name) == 0
    assert not [e for e in logged if e["event"] == "heartbeat_log.misplaced"]
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                " VALUES (now() + interval '30 days', gen_random_uuid(), 'online')"
            )
        )
    await housekeeping.run_once()
    assert read_sample(metrics.registry, name) == 1
    assert {"event": "heartbeat_log.misplaced", "log_level": "warning", "heartbeats": 1} in logged


async def test_roll_up_lag_is_exported(database: Database) -> None:
    metrics = Metrics()
    housekeeping = make_housekeeping(database, metrics)
    await log_heartbeats(database, 1)
    name = "node_registry_roll_up_lag_seconds"
    async with database.write() as other:
        assert await metrics_rollup.try_lock(other)
        await housekeeping.run_once()
        assert read_sample(metrics.registry, name) == 4 * 3600
    await housekeeping.run_once()
    assert read_sample(metrics.registry, name) == 0


async def test_unavailable_step_of_housekeeping_does_not_stop_the_others(
    database: Database, logged: list[EventDict]
) -> None:
    await log_heartbeats(database, 15)
    await register(database, "node-3")
    async with database.write() as reader:
        await reader.execute(text("LOCK TABLE ONLY heartbeat_log IN ACCESS SHARE MODE"))
        task = asyncio.create_task(make_housekeeping(database).run_once())
        await wait_for_lock(database)
        await beat(database, "node-3")
        await task
    assert [e["step"] for e in logged if e["event"] == "housekeeping.unavailable"] == [
        "drop_old_days"
    ]
    assert await fetch_rows(database, HISTORY) == expect_history(15)
    await make_housekeeping(database).run_once()
    assert [day for day, _ in await fetch_rows(database, LOG)] == [0]
