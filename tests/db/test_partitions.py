"""Partitions: created before they are needed, dropped when old, without blocking writers."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import URL, text

from db.core.database import Database
from db.core.errors import Unavailable
from db.core.migrate import migrate
from db.registry import history
from db.retention import partitions
from db.retention.partitions import Partition
from db.routing import node_delta
from tests.support.fleet import (
    beat,
    fetch_rows,
    get_node,
    make_report,
    record,
    register,
    wait_for_lock,
)

DAYS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid
WHERE inhparent = 'heartbeat_log'::regclass AND c.relname <> 'heartbeat_log_default'
ORDER BY c.relname
"""
EXPECTED_DAYS = """
SELECT 'heartbeat_log_' || to_char((now() AT TIME ZONE 'UTC')::date + n, 'YYYYMMDD')
FROM generate_series(0, 7) AS n
"""


async def make_days(database: Database) -> None:
    async with database.write() as session:
        await partitions.make_day_partitions(session)


async def test_concurrent_callers_make_each_day_ahead_once(empty_database_url: URL) -> None:
    database = Database(empty_database_url)
    await migrate(database.engine)
    await asyncio.gather(*(make_days(database) for _ in range(5)))
    await make_days(database)
    assert await fetch_rows(database, DAYS) == await fetch_rows(database, EXPECTED_DAYS)
    await database.close()


async def test_heartbeat_is_stored_in_the_partition_of_its_day(database: Database) -> None:
    await register(database, "node-3")
    await beat(database, "node-3")
    [(partition,)] = await fetch_rows(
        database, "SELECT tableoid::regclass::text FROM heartbeat_log"
    )
    [(expected,)] = await fetch_rows(
        database,
        "SELECT to_char(timestamp AT TIME ZONE 'UTC', '\"heartbeat_log_\"YYYYMMDD')"
        " FROM heartbeat_log",
    )
    assert partition == expected


async def test_partition_covers_exactly_one_utc_day(database: Database) -> None:
    """The time zone of the session that creates the partition does not matter."""
    [(bounds,)] = await fetch_rows(
        database,
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class"
        " WHERE relname = to_char(now() AT TIME ZONE 'UTC', '\"heartbeat_log_\"YYYYMMDD')",
    )
    [(expected,)] = await fetch_rows(
        database,
        "SELECT format('FOR VALUES FROM (''%s 00:00:00+00'') TO (''%s 00:00:00+00'')', d, d + 1)"
        " FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS d) AS today",
    )
    assert bounds == expected


async def test_misplaced_heartbeats_are_moved_into_the_new_partition_of_their_day(
    database: Database,
) -> None:
    """A registry whose clock was ahead, or that was stopped for long, must still start."""
    node, _ = await register(database, "node-3")
    async with database.write() as session:
        await session.execute(text(f"DROP TABLE {(await fetch_rows(database, DAYS))[3][0]}"))
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)"
                " SELECT now() + make_interval(days => n), :node, 'online', '{\"cpu_percent\": 3}'"
                " FROM generate_series(3, 30, 27) AS n"
            ),
            {"node": node.id},
        )
    query = "SELECT id, timestamp, node_id, status, metrics FROM heartbeat_log ORDER BY id"
    before = await fetch_rows(database, query)
    await make_days(database)
    assert await fetch_rows(database, DAYS) == await fetch_rows(database, EXPECTED_DAYS)
    assert await fetch_rows(database, query) == before
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log_default") == [(1,)]
    await make_days(database)
    await beat(database, "node-3")


async def test_heartbeat_does_not_wait_for_a_partition_being_made(database: Database) -> None:
    await register(database, "node-3")
    async with database.write() as session:
        await session.execute(text(f"DROP TABLE {(await fetch_rows(database, DAYS))[-1][0]}"))
    async with database.write() as session:
        await partitions.make_day_partitions(session)
        async with asyncio.timeout(5):
            await beat(database, "node-3", degraded=True)
    assert await fetch_rows(database, DAYS) == await fetch_rows(database, EXPECTED_DAYS)


async def drop_today(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text(f"DROP TABLE {(await fetch_rows(database, DAYS))[0][0]}"))


async def test_heartbeat_that_conflicts_with_a_new_partition_can_be_repeated(
    database: Database,
) -> None:
    await register(database, "node-3")
    await drop_today(database)
    async with database.write() as session:
        await partitions.make_day_partitions(session)
        recording = asyncio.create_task(record(database, make_report("node-3")))
        await wait_for_lock(database)
    with pytest.raises(Unavailable):
        await recording
    await beat(database, "node-3")
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log_default") == [(0,)]


async def make_old_day(database: Database, days: int) -> Partition:
    """Create the partition of a day so long ago, with one heartbeat of a removed node."""
    [(moment,)] = await fetch_rows(
        database, "SELECT now() - make_interval(days => :days)", days=days
    )
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                " VALUES (:moment, gen_random_uuid(), 'online')"
            ),
            {"moment": moment},
        )
        await partitions.make_day_partitions(session)
    [day] = [day for day in await list_days(database) if day.begin <= moment < day.end]
    return day


async def list_days(database: Database) -> list[Partition]:
    async with database.read() as session:
        return await partitions.list_partitions(session, "heartbeat_log")


async def drop(database: Database, partition: Partition) -> None:
    async with database.write() as session:
        await partitions.drop_partition(session, partition)


async def retry_drop(database: Database, partition: Partition) -> None:
    """Drop as housekeeping does: if it is unavailable, try again."""
    async with asyncio.timeout(30):
        while partition in await list_days(database):
            with suppress(Unavailable):
                await drop(database, partition)


async def test_partition_of_a_past_day_is_made_for_a_heartbeat(database: Database) -> None:
    before = await list_days(database)
    day = await make_old_day(database, 3)
    assert await list_days(database) == [day, *before]
    query = "SELECT tableoid::regclass::text FROM heartbeat_log"
    assert await fetch_rows(database, query) == [(day.name,)]
    async with database.read() as session:
        assert await partitions.count_misplaced_heartbeats(session) == 0


async def test_heartbeat_without_a_usable_time_stays_misplaced_and_is_counted(
    database: Database,
) -> None:
    before = await list_days(database)
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status) VALUES"
                " ('-infinity', gen_random_uuid(), 'online'),"
                " ('infinity', gen_random_uuid(), 'online'),"
                " (now() + interval '1y', gen_random_uuid(), 'online')"
            )
        )
        await partitions.make_day_partitions(session)
        assert await partitions.count_misplaced_heartbeats(session) == 3
    assert await list_days(database) == before


async def test_days_are_listed_in_utc_oldest_first(database: Database) -> None:
    days = await list_days(database)
    assert [day.name for day in days] == [name for (name,) in await fetch_rows(database, DAYS)]
    for day in days:
        assert day.begin.tzinfo == UTC
        assert day.name == f"heartbeat_log_{day.begin:%Y%m%d}"
        assert day.end - day.begin == timedelta(days=1)


@pytest.mark.parametrize(
    ("moment", "begin", "end"),
    [
        (datetime(2024, 2, 29, 23, 59, tzinfo=UTC), (2024, 2), (2024, 3)),
        (datetime(2025, 12, 1, tzinfo=UTC), (2025, 12), (2026, 1)),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), (2026, 1), (2026, 2)),
        (datetime(2026, 3, 1, 1, tzinfo=timezone(timedelta(hours=2))), (2026, 2), (2026, 3)),
    ],
)
async def test_month_is_made_once_and_ends_where_the_next_begins(
    database: Database, moment: datetime, begin: tuple[int, int], end: tuple[int, int]
) -> None:
    for _ in range(2):
        async with database.write() as session:
            await partitions.make_month_partition(session, moment)
    async with database.read() as session:
        assert await partitions.list_partitions(session, "metrics_history") == [
            Partition(
                f"metrics_history_{begin[0]}{begin[1]:02}",
                datetime(*begin, 1, tzinfo=UTC),
                datetime(*end, 1, tzinfo=UTC),
            )
        ]


async def test_partition_is_old_by_the_age_of_its_end(database: Database) -> None:
    today = (await list_days(database))[0]
    day = await make_old_day(database, 2)
    [(age,)] = await fetch_rows(
        database,
        "SELECT extract(epoch FROM now() - CAST(:end AS timestamptz))::float8",
        end=day.end,
    )
    async with database.read() as session:
        assert await partitions.list_old_partitions(session, "heartbeat_log", age) == [day]
        assert await partitions.list_old_partitions(session, "heartbeat_log", age + 3600) == []
        assert today not in await partitions.list_old_partitions(session, "heartbeat_log", 0)


async def test_concurrent_drops_remove_the_day_and_no_other(
    database: Database,
) -> None:
    before = await list_days(database)
    day, other_day = await make_old_day(database, 3), await make_old_day(database, 2)
    await asyncio.gather(*(drop(database, day) for _ in range(4)))
    await drop(database, day)
    assert await list_days(database) == [other_day, *before]
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(1,)]


@pytest.mark.parametrize("locked", ["heartbeat_log", "heartbeat_log_default", "old"])
async def test_day_that_is_locked_is_not_dropped_and_delays_no_heartbeat(
    database: Database, locked: str
) -> None:
    await register(database, "node-3")
    day = await make_old_day(database, 3)
    before = await list_days(database)
    async with database.write() as reader:
        table = day.name if locked == "old" else f"ONLY {locked}"
        await reader.execute(text(f"LOCK TABLE {table} IN ACCESS SHARE MODE"))
        dropping = asyncio.create_task(drop(database, day))
        await wait_for_lock(database)
        async with asyncio.timeout(2):
            await beat(database, "node-3", 1)
        with pytest.raises(Unavailable):
            await dropping
    assert await list_days(database) == before
    await drop(database, day)
    assert await list_days(database) == before[1:]


async def test_dropping_days_disturbs_no_writer_and_no_reader(
    database: Database,
) -> None:
    nodes = [(await register(database, f"node-{n}"))[0].id for n in range(5)]
    days = [await make_old_day(database, n) for n in range(12, 2, -1)]
    stop = asyncio.Event()

    async def write(writer: int) -> int:
        sequence = 0
        while not stop.is_set():
            sequence += 1
            await beat(database, f"node-{writer}", sequence, metrics={"sequence": sequence})
        return sequence

    async def read() -> None:
        while not stop.is_set():
            async with database.read() as session:
                await history.list_heartbeats(
                    session, nodes, first=3, after=None, since=None, until=None
                )
                assert len((await node_delta.read_delta(session, None)).changed) == 7

    writers = [asyncio.create_task(write(n)) for n in range(3)]
    readers = [asyncio.create_task(read()) for _ in range(2)]
    for day in days:
        await retry_drop(database, day)
    stop.set()
    written = sum(await asyncio.gather(*writers))
    await asyncio.gather(*readers)
    assert await fetch_rows(database, "SELECT count(*) FROM heartbeat_log") == [(written,)]
    assert not set(days) & set(await list_days(database))


async def test_node_whose_last_heartbeat_was_dropped_has_no_metrics(
    database: Database,
) -> None:
    node, _ = await register(database, "node-3")
    await beat(database, "node-3", metrics={"cpu_percent": 3})
    async with database.write() as session:
        for statement in (
            "UPDATE heartbeat_log SET timestamp = timestamp - interval '20 days'",
            "UPDATE nodes SET last_heartbeat = last_heartbeat - interval '20 days'",
        ):
            await session.execute(text(statement))
        await partitions.make_day_partitions(session)
    async with database.read() as session:
        assert (await history.find_latest_metrics(session, [node.id]))[node.id] == {
            "cpu_percent": 3
        }
    await drop(database, (await list_days(database))[0])
    async with database.read() as session:
        assert await history.find_latest_metrics(session, [node.id]) == {}
        candidates = {
            candidate.id: candidate
            for candidate in (await node_delta.read_delta(session, None)).changed
        }
    assert candidates[node.id].cpu_percent is None
    assert (await get_node(database, "node-3")).last_heartbeat is not None
