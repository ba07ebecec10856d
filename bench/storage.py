"""What a heartbeat costs the database: WAL, and how many updates of nodes stay in their page (HOT).

The limit is what pgbench writes: an update and a row of the log, by statements of a thousand
heartbeats. Full-page images, which depend on the checkpoints alone, are turned off.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sqlalchemy import text

from bench import pgbench, processes
from bench.closed_loop import Load
from bench.heartbeat_load import encode_posts, generate_heartbeats
from bench.http_connection import open_http_connection
from bench.nodes import insert_nodes
from bench.pgbench import STATEMENT_SIZE
from bench.results import Result, Target
from db.core.database import Database

METRICS_BYTES = 400

_WRITTEN = text("""
SELECT (SELECT count(*) FROM heartbeat_log), pg_current_wal_insert_lsn() - '0/0'
""")
_UPDATE_COUNTS = text("""
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'
""")

WriteHeartbeats = Callable[[], Awaitable[object]]


async def measure_storage(*, quick: bool) -> AsyncIterator[Result]:
    node_count, seconds, run_count = (STATEMENT_SIZE, 0.3, 1) if quick else (10_000, 1, 3)
    async with processes.open_database() as database:
        await insert_nodes(database, node_count)
        await _turn_off_full_page_writes(database)
        update_counts = [await _read_update_counts(database)]
        async with processes.run_registry(database.url) as registry:
            posts = encode_posts("/graphql", generate_heartbeats(node_count, METRICS_BYTES))
            load = Load(open_http_connection, registry, posts)
            figures = await _measure_wal_bytes(database, lambda: load.run(seconds), run_count)
        update_counts.append(await _read_update_counts(database))
        limits = await _measure_wal_bytes(
            database, lambda: pgbench.measure_statements(database, node_count, seconds), run_count
        )
        update_counts.append(await _read_update_counts(database))
    limit_name = f"pgbench, statements of {STATEMENT_SIZE:,}"
    yield Result(
        f"WAL per heartbeat, metrics of {METRICS_BYTES} bytes",
        "bytes",
        figures,
        limit_name,
        limits,
        Target("figure", "at most", 1200),
    )
    yield Result(
        "updates of nodes that stay in their page (HOT)",
        "%",
        [_compute_hot_percent(*update_counts[:2])],
        limit_name,
        [_compute_hot_percent(*update_counts[1:])],
        Target("figure", "at least", 95),
    )


async def _turn_off_full_page_writes(database: Database) -> None:
    async with database.read() as session:
        await session.execute(text("ALTER SYSTEM SET full_page_writes = off"))
        await session.execute(text("SELECT pg_reload_conf()"))
    await database.engine.dispose()


async def _measure_wal_bytes(
    database: Database, write: WriteHeartbeats, run_count: int
) -> Sequence[float]:
    """Return the bytes of WAL for a heartbeat, for each run."""
    await write()  # the warm-up
    wal_bytes = []
    for _ in range(run_count):
        heartbeats_before, bytes_before = await _read_written(database)
        await write()
        heartbeats, total_bytes = await _read_written(database)
        wal_bytes.append((total_bytes - bytes_before) / (heartbeats - heartbeats_before))
    return wal_bytes


async def _read_written(database: Database) -> tuple[float, float]:
    """Return the number of logged heartbeats and the bytes of WAL written so far."""
    async with database.read() as session:
        heartbeats, wal_bytes = (await session.execute(_WRITTEN)).one()
        return heartbeats, float(wal_bytes)


async def _read_update_counts(database: Database) -> tuple[int, int]:
    """Return how many updates of nodes there were, and how many of them were HOT.

    Only connections that are closed have reported all of theirs; open ones report later.
    """
    async with database.read() as session:
        updates, hot_updates = (await session.execute(_UPDATE_COUNTS)).one()
        return updates, hot_updates


def _compute_hot_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    return 100 * (after[1] - before[1]) / (after[0] - before[0])
