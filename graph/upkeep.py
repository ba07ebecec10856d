"""The housekeeping that a running registry does for its tables."""

import asyncio
from datetime import timedelta

import structlog

from db import changes, partitions, tokens
from db.database import Database
from db.errors import Unavailable
from graph.settings import Settings

log = structlog.get_logger()

_INTERVAL_SECONDS = 3600
_TRIM_BATCH = 10_000
_DEAD_KEYS_KEPT = timedelta(days=90)


async def keep_up(database: Database, settings: Settings) -> None:
    """Once an hour, for ever: the days of the heartbeat log long before they begin, and an end to
    the change log and to the keys that are dead.
    """
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        try:
            async with database.write() as session:
                await partitions.make_ahead(session)
            await trim_change_log(database, settings)
            await purge_keys(database)
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


async def purge_keys(database: Database) -> None:
    """Forgets the keys that have been dead for 90 days, in transactions of bounded size."""
    while True:
        async with database.write() as session:
            if await tokens.purge(session, keep=_DEAD_KEYS_KEPT, batch=_TRIM_BATCH) < _TRIM_BATCH:
                return
