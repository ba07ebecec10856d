"""What a heartbeat costs the database: WAL, and how many updates of nodes stay in their page (HOT).

The limit is what pgbench writes, an update and a row of the log by statements of a thousand. Full
pages, which depend on the checkpoints alone, are not written here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from bench import pgbench, requests, stage
from bench.beats import beats, posts
from bench.closed_loop import Load
from bench.nodes import settle
from bench.rows import Row, Target
from db.database import Database

A_STATEMENT = 1000
METRICS_BYTES = 400

_TOLD_WITHIN_SECONDS = 2
"""PostgreSQL's processes tell their statistics at most every second, and when they fall idle."""

_WRITTEN = text("""
SELECT (SELECT count(*) FROM heartbeat_log), pg_current_wal_insert_lsn() - '0/0'
""")
_UPDATES = text("""
SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nodes'
""")

Writing = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class _Cost:
    wal_bytes: Sequence[float]
    """A heartbeat, of each run."""
    hot_percent: float


async def storage(*, quick: bool) -> AsyncIterator[Row]:
    fleet, seconds, runs = (A_STATEMENT, 0.3, 1) if quick else (2000, 1.5, 3)
    async with stage.database() as database:
        await settle(database, fleet)
        await _without_full_pages(database)
        async with stage.registry(database.url) as registry:
            sent = posts("/graphql", beats(fleet, METRICS_BYTES))
            load = Load(requests.dial, registry, sent)
            recorded = await _cost(database, lambda: load.run(seconds), runs)
            alone = await _cost(
                database,
                lambda: pgbench.statements_of(A_STATEMENT, database, fleet, seconds),
                runs,
            )
    limit = f"pgbench, statements of {A_STATEMENT:,}"
    yield Row(
        f"WAL per heartbeat, metrics of {METRICS_BYTES} bytes",
        "bytes",
        recorded.wal_bytes,
        limit,
        alone.wal_bytes,
        Target("figure", "at most", 1200),
    )
    yield Row(
        "updates of nodes that stay in their page (HOT)",
        "%",
        [recorded.hot_percent],
        limit,
        [alone.hot_percent],
        Target("figure", "at least", 95),
    )


async def _without_full_pages(database: Database) -> None:
    async with database.read() as session:
        await session.execute(text("ALTER SYSTEM SET full_page_writes = off"))
        await session.execute(text("SELECT pg_reload_conf()"))


async def _cost(database: Database, write: Writing, runs: int) -> _Cost:
    await write()  # to warm up
    updates_before, hot_before = await _updates(database)
    wal_bytes = []
    for _ in range(runs):
        heartbeats_before, wal_before = await _written(database)
        await write()
        heartbeats, wal = await _written(database)
        wal_bytes.append((wal - wal_before) / (heartbeats - heartbeats_before))
    updates, hot = await _updates(database)
    return _Cost(wal_bytes, 100 * (hot - hot_before) / (updates - updates_before))


async def _written(database: Database) -> tuple[float, float]:
    """Heartbeats, and bytes of WAL."""
    async with database.read() as session:
        heartbeats, wal = (await session.execute(_WRITTEN)).one()
        return heartbeats, float(wal)


async def _updates(database: Database) -> tuple[int, int]:
    """All, and those that were HOT: once each process of PostgreSQL has told what it did."""
    await asyncio.sleep(_TOLD_WITHIN_SECONDS)
    async with database.read() as session:
        updates, hot = (await session.execute(_UPDATES)).one()
        return updates, hot
