"""The housekeeping that a running registry does for its tables."""

import asyncio

import structlog

from db import changes, partitions
from db.database import Database
from db.errors import Unavailable
from graph.settings import Settings

log = structlog.get_logger()

_INTERVAL_SECONDS = 3600
_TRIM_BATCH = 10_000


async def keep_up(database: Database, settings: Settings) -> None:
    """Once an hour, for ever: the days of the heartbeat log long before they begin, and an end to
    the change log.
    """
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        try:
            async with database.write() as session:
                await partitions.make_ahead(session)
            await trim_change_log(database, settings)
        except Unavailable as error:
            log.warning("upkeep.unavailable", cause=repr(error.__cause__))


async def trim_change_log(database: Database, settings: Settings) -> int:
    """Drops what lies beyond the configured count and age, in transactions of bounded size."""
    dropped = 0
    while True:
        async with database.write() as session:
            batch = await changes.trim(
                session,
                keep_rows=settings.change_log_max_rows,
                keep_seconds=settings.change_log_max_age_seconds,
                batch=_TRIM_BATCH,
            )
        dropped += batch
        if batch < _TRIM_BATCH:
            break
    if dropped:
        log.info("change_log.trimmed", changes=dropped)
    return dropped
