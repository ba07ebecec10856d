"""Old data makes room before a heartbeat finds none: what goes, in which order, and what stays."""

from typing import Any, NamedTuple

import pytest
from sqlalchemy import text
from structlog.types import EventDict

from db.core.database import Database
from db.core.errors import Unavailable
from db.retention import metrics_rollup
from graph.core.settings import Settings
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.fleet import fetch_rows
from tests.support.storage import fill_disk, list_days, log_noise

MEGABYTE = 1024 * 1024
HISTORY = "SELECT sum(heartbeats) FROM metrics_history"


def make_housekeeping(
    database: Database, metrics: Metrics | None = None, **settings: Any
) -> Housekeeping:
    url = database.url.render_as_string(hide_password=False)
    return Housekeeping(
        database, Settings(**{"database_url": url, **settings}), metrics or Metrics()
    )


async def test_oldest_days_go_first_and_no_more_than_needed(database: Database) -> None:
    size = await log_noise(database, 0, 1, 2, 3)
    metrics = Metrics()
    housekeeping = make_housekeeping(database, metrics, max_database_bytes=size - MEGABYTE // 2)
    await housekeeping.make_room()
    assert await list_days(database) == [0, 1, 2]
    assert await fetch_rows(database, HISTORY) == [(300,)]
    assert await database.measure_size_bytes() < size - MEGABYTE // 2
    name = "node_registry_dropped_early_total"
    assert metrics.registry.get_sample_value(name, {"table": "heartbeat_log"}) == 1


async def test_today_stays_and_months_go_after_days(database: Database) -> None:
    await log_noise(database, 0, 1, 40, 80)
    housekeeping = make_housekeeping(database, max_database_bytes=1)
    await housekeeping.run_once()
    assert await list_days(database) == [0]
    months = "SELECT count(*) FROM metrics_history WHERE hour < date_trunc('month', now())"
    assert await fetch_rows(database, months) == [(0,)]
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(300,)]


async def test_nothing_is_dropped_early_while_there_is_room(
    database: Database, logged: list[EventDict]
) -> None:
    size = await log_noise(database, 0, 1, 2)
    await make_housekeeping(database).make_room()
    await make_housekeeping(database, max_database_bytes=2 * size).make_room()
    assert not [event for event in logged if event["event"].startswith("storage.")]
    metrics = Metrics()
    await make_housekeeping(database, metrics, max_database_bytes=size * 10 // 9).make_room()
    assert [event["event"] for event in logged if event["event"].startswith("storage.")] == [
        "storage.running_out"
    ]
    pressure = metrics.registry.get_sample_value("node_registry_storage_pressure_ratio")
    assert pressure == pytest.approx(0.9, abs=0.01)
    assert await list_days(database) == [0, 1, 2]


class DiskUsage(NamedTuple):
    free: int


async def test_free_disk_of_the_embedded_database_counts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_noise(database, 0, 1, 2)
    free = iter([100 * MEGABYTE, 199 * MEGABYTE, 201 * MEGABYTE])
    monkeypatch.setattr("shutil.disk_usage", lambda _: DiskUsage(next(free)))
    settings: dict[str, Any] = {"min_free_disk_bytes": 200 * MEGABYTE}
    await make_housekeeping(database, **settings).make_room()
    assert await list_days(database) == [0, 1, 2]
    await make_housekeeping(database, database_url=None, **settings).make_room()
    assert await list_days(database) == [0]


async def test_day_that_cannot_be_rolled_up_makes_room_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = await log_noise(database, 0, 1)

    async def fail(*_: object) -> int:
        raise Unavailable(1)

    monkeypatch.setattr(metrics_rollup, "roll_up", fail)
    await make_housekeeping(database, max_database_bytes=size - 1).make_room()
    assert await list_days(database) == [0]


async def test_audit_entries_go_last_a_day_at_a_time_and_never_those_of_a_week(
    database: Database,
) -> None:
    rows = """
    INSERT INTO audit_log (recorded_at, actor, action, subject)
    SELECT now() - make_interval(days => n), 'a', 'b', n
    FROM unnest(ARRAY[1, 6, 8, 30, 300]) AS n
    """
    async with database.write() as session:
        await session.execute(text(rows))
    await log_noise(database, 0, 1)
    housekeeping = make_housekeeping(database, max_database_bytes=1)
    subjects = "SELECT subject FROM audit_log ORDER BY recorded_at DESC"
    for expected in ("1 6 8 30", "1 6 8", "1 6", "1 6"):
        await housekeeping.make_room()
        assert await list_days(database) == [0]
        assert [subject for (subject,) in await fetch_rows(database, subjects)] == expected.split()


async def test_full_disk_is_noticed_by_a_failed_write(database: Database) -> None:
    await log_noise(database, 0, 1, 2)
    await fill_disk(database)
    housekeeping = make_housekeeping(database)
    async with database.open_separate_pool(1) as pool:
        with pytest.raises(Unavailable) as rejection:
            async with pool.open_connection() as connection:
                await connection.execute(
                    "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                    " VALUES (now(), gen_random_uuid(), 'online')"
                )
    assert rejection.value.details["retryAfterSeconds"]
    assert database.disk_full.is_set()
    await housekeeping.make_room()
    assert not database.disk_full.is_set()
    assert await list_days(database) == [0, 1]
