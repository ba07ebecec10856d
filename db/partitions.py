"""Tables in parts by time: each is made before it is needed, and dropped whole when it is old."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import DateTime, String, column, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

DAYS_AHEAD = 7
_MAX_DAYS_BEHIND = 31
_DROP_WAITS_MS = 100
_LOCK = "node_registry_partitions"


@dataclass(frozen=True, slots=True)
class Partition:
    """From `begin` on and before `end`."""

    name: str
    begin: datetime
    end: datetime


def day(table: str, moment: datetime) -> Partition:
    begin = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Partition(f"{table}_{begin:%Y%m%d}", begin, begin + timedelta(days=1))


def month(table: str, moment: datetime) -> Partition:
    begin = day(table, moment).begin.replace(day=1)
    end = (begin + timedelta(days=31)).replace(day=1)
    return Partition(f"{table}_{begin:%Y%m}", begin, end)


_LIST = text(r"""
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


async def listed(session: AsyncSession, table: str) -> list[Partition]:
    """Those of a limited time, the oldest first."""
    rows = await session.execute(_LIST, {"table": table})
    return [Partition(*row) for row in rows]


async def old(session: AsyncSession, table: str, max_age_seconds: float) -> list[Partition]:
    """Those that ended so long ago, the oldest first."""
    now: datetime = (await session.execute(select(func.registry_now()))).scalar_one()
    age = timedelta(seconds=max_age_seconds)
    return [part for part in await listed(session, table) if now - part.end >= age]


_DAYS_BEHIND = text(f"""
SELECT DISTINCT date_trunc('day', timestamp) AS day
FROM heartbeat_log_default
WHERE timestamp > '-infinity' AND timestamp < :today
ORDER BY day LIMIT {_MAX_DAYS_BEHIND}
""")  # noqa: S608  # a number of ours


_LOCK_DEFAULT = "LOCK TABLE heartbeat_log_default"


def _move(part: Partition) -> str:
    """Heartbeats of a day that was not there went to the default partition: they move along.

    PostgreSQL refuses to attach the day while the default partition holds one of them.
    """
    return f"""
    WITH moved AS (
        DELETE FROM heartbeat_log_default
        WHERE timestamp >= '{part.begin.isoformat()}' AND timestamp < '{part.end.isoformat()}'
        RETURNING *
    )
    INSERT INTO {part.name} SELECT * FROM moved
    """  # noqa: S608  # a name and instants of ours


async def make_days(session: AsyncSession) -> None:
    """Makes those of heartbeat_log for today and the days ahead, in UTC; replicas may at once.

    So too for past days of which a heartbeat lies in the default partition.
    """
    await _take_turns(session)
    now: datetime = (await session.execute(select(func.now()))).scalar_one()
    today = day("heartbeat_log", now).begin
    behind = await session.scalars(_DAYS_BEHIND, {"today": today})
    ahead = (today + timedelta(days=n) for n in range(DAYS_AHEAD + 1))
    for begin in [*behind, *ahead]:
        part = day("heartbeat_log", begin)
        await _make(session, "heartbeat_log", part, _LOCK_DEFAULT, _move(part))


async def make_month(session: AsyncSession, moment: datetime) -> None:
    """Makes that of metrics_history in which the moment lies."""
    await _take_turns(session)
    await _make(session, "metrics_history", month("metrics_history", moment))


async def misplaced(session: AsyncSession) -> int:
    """How many heartbeats lie in the default partition, because theirs was not there."""
    count = await session.scalar(text("SELECT count(*) FROM heartbeat_log_default"))
    return count or 0


async def drop(session: AsyncSession, partition: Partition) -> bool:
    """False when another process has done so.

    PostgreSQL detaches nothing concurrently from a table that has a default partition. So this
    locks the whole table, for some milliseconds, and waits no longer for that than the heartbeats
    behind it may. Raises Unavailable, and has dropped nothing, when it would have to. The files are
    removed when the lock has been released.
    """
    await _take_turns(session)
    if await session.scalar(select(func.to_regclass(partition.name))) is None:
        return False
    await session.execute(text(f"SET LOCAL lock_timeout = '{_DROP_WAITS_MS}ms'"))
    await session.execute(text(f"DROP TABLE {partition.name}"))
    return True


async def _take_turns(session: AsyncSession) -> None:
    """One transaction after the other, however long its work takes."""
    await session.execute(text("SET LOCAL statement_timeout = '10min'"))
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(_LOCK))))


async def _make(session: AsyncSession, table: str, part: Partition, *moves: str) -> None:
    """`moves` are said between the making of the part and its attachment."""
    if await session.scalar(select(func.to_regclass(part.name))) is not None:
        return
    bounds = f"FOR VALUES FROM ('{part.begin.isoformat()}') TO ('{part.end.isoformat()}')"
    for statement in (
        f"CREATE TABLE {part.name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        *moves,
        f"ALTER TABLE {table} ATTACH PARTITION {part.name} {bounds}",
    ):
        await session.execute(text(statement))
