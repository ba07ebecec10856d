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
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        end = start + timedelta(days=1)
        await session.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS heartbeat_log_{day:%Y%m%d} PARTITION OF heartbeat_log"
                f" FOR VALUES FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"
            )
        )
