"""The days of heartbeat_log: made ahead of time, so that no heartbeat waits for one."""

from datetime import UTC, date, datetime, timedelta

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

DAYS_AHEAD = 7
_LOCK = "node_registry_partitions"


async def make_ahead(session: AsyncSession) -> None:
    """Makes the partitions of today and the days ahead, in UTC; replicas may do so at once."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(_LOCK))))
    today: date = (
        await session.execute(text("SELECT (now() AT TIME ZONE 'UTC')::date"))
    ).scalar_one()
    for day in (today + timedelta(days=n) for n in range(DAYS_AHEAD + 1)):
        partition = f"heartbeat_log_{day:%Y%m%d}"
        if await session.scalar(select(func.to_regclass(partition))) is None:
            await _make(session, partition, datetime(day.year, day.month, day.day, tzinfo=UTC))


async def _make(session: AsyncSession, partition: str, start: datetime) -> None:
    """Heartbeats of a day that was not there went to the default partition: they move along.

    PostgreSQL refuses to make the day while the default partition holds one of them.
    """
    begin, end = start.isoformat(), (start + timedelta(days=1)).isoformat()
    make = f"""
    CREATE TABLE {partition} (LIKE heartbeat_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
    LOCK TABLE heartbeat_log_default;
    WITH moved AS (
        DELETE FROM heartbeat_log_default
        WHERE timestamp >= '{begin}' AND timestamp < '{end}' RETURNING *
    )
    INSERT INTO {partition} SELECT * FROM moved;
    ALTER TABLE heartbeat_log
    ATTACH PARTITION {partition} FOR VALUES FROM ('{begin}') TO ('{end}')
    """  # noqa: S608  # names and instants of ours
    for statement in make.split(";"):
        await session.execute(text(statement))
