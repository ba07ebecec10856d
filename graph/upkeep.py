"""The housekeeping that a running registry does for its tables."""

import asyncio

import structlog

from db import partitions
from db.database import Database
from db.errors import Unavailable

log = structlog.get_logger()

_INTERVAL_SECONDS = 3600


async def keep_partitions(database: Database) -> None:
    """Makes the days of the heartbeat log long before they begin, for ever."""
    while True:
        await asyncio.sleep(_INTERVAL_SECONDS)
        try:
            async with database.write() as session:
                await partitions.make_ahead(session)
        except Unavailable as error:
            log.warning("partitions.unavailable", cause=repr(error.__cause__))
