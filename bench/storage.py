"""What a heartbeat costs the database: WAL, and how many updates of nodes stay in their page (HOT).

The limit is what pgbench writes, an update and a row of the log by statements of a thousand. Full
pages, which depend on the checkpoints alone, are not written here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sqlalchemy import text

from bench import http_connection, pgbench, processes
from bench.closed_loop import Load
from bench.heartbeat_load import encode_posts, generate_heartbeats
from bench.nodes import insert_nodes
from bench.results import Result, Target
from db.core.database import Database

STATEMENT_SIZE = 1000
METRICS_BYTES = 400

_WRITTEN = text("""
SELECT (SELECT count(*) FROM heartbeat_log), pg_current_wal_insert_lsn() - '0/0'
""")
_UPDATE_COUNTS = text("""
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'
""")

Write = Callable[[], Awaitable[object]]


async def measure_storage(*, quick: bool) -> AsyncIterator[Result]:
    fleet, seconds, runs = (STATEMENT_SIZE, 0.3, 1) if quick else (10_000, 1, 3)
    async with processes.open_database() as database:
        await insert_nodes(database, fleet)
        await _turn_off_full_page_writes(database)
        updates = [await _read_update_counts(database)]
        async with processes.run_registry(database.url) as registry:
            sent = encode_posts("/graphql", generate_heartbeats(fleet, METRICS_BYTES))
            load = Load(http_connection.open_connection, registry, sent)
            recorded = await _measure_wal_bytes(database, lambda: load.run(seconds), runs)
        updates.append(await _read_update_counts(database))
        alone = await _measure_wal_bytes(
            database,
            lambda: pgbench.measure_statements(STATEMENT_SIZE, database, fleet, seconds),
            runs,
        )
        updates.append(await _read_update_counts(database))
    limit = f"pgbench, statements of {STATEMENT_SIZE:,}"
    yield Result(
        f"WAL per heartbeat, metrics of {METRICS_BYTES} bytes",
        "bytes",
        recorded,
        limit,
        alone,
        Target("figure", "at most", 1200),
    )
    yield Result(
        "updates of nodes that stay in their page (HOT)",
        "%",
        [_compute_hot_percent(*updates[:2])],
        limit,
        [_compute_hot_percent(*updates[1:])],
        Target("figure", "at least", 95),
    )


async def _turn_off_full_page_writes(database: Database) -> None:
    async with database.read() as session:
        await session.execute(text("ALTER SYSTEM SET full_page_writes = off"))
        await session.execute(text("SELECT pg_reload_conf()"))
    await database.engine.dispose()


async def _measure_wal_bytes(database: Database, write: Write, runs: int) -> Sequence[float]:
    """A heartbeat, of each run."""
    await write()  # to warm up
    each = []
    for _ in range(runs):
        heartbeats_before, wal_before = await _read_written(database)
        await write()
        heartbeats, wal = await _read_written(database)
        each.append((wal - wal_before) / (heartbeats - heartbeats_before))
    return each


async def _read_written(database: Database) -> tuple[float, float]:
    """Heartbeats, and bytes of WAL."""
    async with database.read() as session:
        heartbeats, wal = (await session.execute(_WRITTEN)).one()
        return heartbeats, float(wal)


async def _read_update_counts(database: Database) -> tuple[int, int]:
    """All, and those that were HOT, of connections that are closed: others tell it later."""
    async with database.read() as session:
        updates, hot = (await session.execute(_UPDATE_COUNTS)).one()
        return updates, hot


def _compute_hot_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    return 100 * (after[1] - before[1]) / (after[0] - before[0])
