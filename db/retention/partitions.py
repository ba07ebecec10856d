"""Partitions by time: each is created before it is needed, and dropped whole when it is old.

Functions of the database create and drop them with the rights of the tables' owner, because the
service's own role has no such right.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import DateTime, String, column, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

DAYS_AHEAD = 7
STATEMENT_TIMEOUT_SECONDS = 600
"""The statement timeout of a transaction that creates or drops partitions.

It includes the wait for other processes that do the same.
"""

_MAX_MISPLACED_DAYS = 31
_LOCK = "node_registry_partitions"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition for the time from `begin` on and before `end`."""

    name: str
    begin: datetime
    end: datetime


_LIST_PARTITIONS = text(r"""
SELECT name, CAST(bounds[1] AS timestamptz) AS begin, CAST(bounds[2] AS timestamptz) AS end
FROM (
    SELECT CAST(CAST(c.oid AS regclass) AS text) AS name,
           regexp_match(pg_get_expr(c.relpartbound, c.oid),
                        'FROM \(''(\d.*)''\) TO \(''(\d.*)''\)') AS bounds
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = CAST(CAST(:table AS text) AS regclass)
) parts
WHERE bounds IS NOT NULL
ORDER BY begin
""").columns(
    column("name", String),
    column("begin", DateTime(timezone=True)),
    column("end", DateTime(timezone=True)),
)


async def list_partitions(session: AsyncSession, table: str) -> list[Partition]:
    """Return the partitions of a table that have bounds, the oldest first."""
    rows = await session.execute(_LIST_PARTITIONS, {"table": table})
    return [Partition(*row) for row in rows]


async def list_old_partitions(
    session: AsyncSession, table: str, max_age_seconds: float
) -> list[Partition]:
    """Return the partitions that ended at least `max_age_seconds` ago, the oldest first."""
    now: datetime = (await session.execute(select(func.registry_now()))).scalar_one()
    age = timedelta(seconds=max_age_seconds)
    return [part for part in await list_partitions(session, table) if now - part.end >= age]


_LIST_MISPLACED_DAYS = text(f"""
SELECT DISTINCT CAST(timestamp AT TIME ZONE 'UTC' AS date) AS day
FROM heartbeat_log_default
WHERE timestamp > '-infinity'
  AND timestamp < date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
ORDER BY day LIMIT {_MAX_MISPLACED_DAYS}
""")  # noqa: S608  # only our own number


_MAKE_DAYS = text("""
SELECT make_heartbeat_day(day) FROM (
    SELECT unnest(CAST(:behind AS date[])) AS day
    UNION ALL
    SELECT CAST(now() AT TIME ZONE 'UTC' AS date) + n FROM generate_series(0, :ahead) AS n
) days
""")


async def make_day_partitions(session: AsyncSession) -> None:
    """Create the partitions of heartbeat_log for today and the next DAYS_AHEAD days, in UTC.

    Past days of which a heartbeat lies in the default partition get theirs too, and all heartbeats
    of such a day move into it. Several processes may do so at once.
    """
    await _lock_partitions(session)
    behind = (await session.scalars(_LIST_MISPLACED_DAYS)).all()
    await session.execute(_MAKE_DAYS, {"behind": behind, "ahead": DAYS_AHEAD})


async def make_month_partition(session: AsyncSession, moment: datetime) -> None:
    """Create the partition of metrics_history for the month (UTC) of the moment."""
    await _lock_partitions(session)
    await session.execute(select(func.make_metrics_month(moment.astimezone(UTC).date())))


async def count_misplaced_heartbeats(session: AsyncSession) -> int:
    """Return how many heartbeats lie in the default partition, because their day had none."""
    count = await session.scalar(text("SELECT count(*) FROM heartbeat_log_default"))
    return count or 0


_DROP_PARTITION = text("SELECT drop_partition(CAST(CAST(:name AS text) AS regclass))")


async def drop_partition(session: AsyncSession, partition: Partition) -> bool:
    """Drop a partition; return False if another process has dropped it already.

    This locks the whole table for some milliseconds. The files are removed after the lock is
    released.

    Raises: Unavailable: the lock was not free soon enough; nothing was dropped.
    """
    await _lock_partitions(session)
    if await session.scalar(select(func.to_regclass(partition.name))) is None:
        return False
    await session.execute(_DROP_PARTITION, {"name": partition.name})
    return True


async def _lock_partitions(session: AsyncSession) -> None:
    """Let one transaction at a time change partitions, with a long statement timeout."""
    await session.execute(text(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'"))
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(_LOCK))))
