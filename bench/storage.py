"""What a heartbeat costs the database: WAL, and how many updates of nodes stay in their page (HOT).

The limit is what pgbench writes, an update and a row of the log by statements of a thousand. Full
pages, which depend on the checkpoints alone, are not written here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sqlalchemy import text

from bench import http_connection, pgbench, processes
from bench.closed_loop import Load
from bench.heartbeat_load import beats, posts
from bench.nodes import settle
from bench.results import Row, Target
from db.core.database import Database

A_STATEMENT = 1000
METRICS_BYTES = 400

_WRITTEN = text("""
SELECT (SELECT count(*) FROM heartbeat_log), pg_current_wal_insert_lsn() - '0/0'
""")
_UPDATES = text("""
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'
""")

Writing = Callable[[], Awaitable[object]]


async def storage(*, quick: bool) -> AsyncIterator[Row]:
    fleet, seconds, runs = (A_STATEMENT, 0.3, 1) if quick else (10_000, 1, 3)
    async with processes.database() as database:
        await settle(database, fleet)
        await _prepare(database)
        updates = [await _updates(database)]
        async with processes.registry(database.url) as registry:
            sent = posts("/graphql", beats(fleet, METRICS_BYTES))
            load = Load(http_connection.dial, registry, sent)
            recorded = await _wal_bytes(database, lambda: load.run(seconds), runs)
        updates.append(await _updates(database))
        alone = await _wal_bytes(
            database, lambda: pgbench.statements_of(A_STATEMENT, database, fleet, seconds), runs
        )
        updates.append(await _updates(database))
    limit = f"pgbench, statements of {A_STATEMENT:,}"
    yield Row(
        f"WAL per heartbeat, metrics of {METRICS_BYTES} bytes",
        "bytes",
        recorded,
        limit,
        alone,
        Target("figure", "at most", 1200),
    )
    yield Row(
        "updates of nodes that stay in their page (HOT)",
        "%",
        [_hot_percent(*updates[:2])],
        limit,
        [_hot_percent(*updates[1:])],
        Target("figure", "at least", 95),
    )


async def _prepare(database: Database) -> None:
    async with database.read() as session:
        await session.execute(text("ALTER SYSTEM SET full_page_writes = off"))
        await session.execute(text("SELECT pg_reload_conf()"))
    await database.engine.dispose()


async def _wal_bytes(database: Database, write: Writing, runs: int) -> Sequence[float]:
    """A heartbeat, of each run."""
    await write()  # to warm up
    each = []
    for _ in range(runs):
        heartbeats_before, wal_before = await _written(database)
        await write()
        heartbeats, wal = await _written(database)
        each.append((wal - wal_before) / (heartbeats - heartbeats_before))
    return each


async def _written(database: Database) -> tuple[float, float]:
    """Heartbeats, and bytes of WAL."""
    async with database.read() as session:
        heartbeats, wal = (await session.execute(_WRITTEN)).one()
        return heartbeats, float(wal)


async def _updates(database: Database) -> tuple[int, int]:
    """All, and those that were HOT, of connections that are closed: others tell it later."""
    async with database.read() as session:
        updates, hot = (await session.execute(_UPDATES)).one()
        return updates, hot


def _hot_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    return 100 * (after[1] - before[1]) / (after[0] - before[0])
