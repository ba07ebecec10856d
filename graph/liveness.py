"""The liveness loop: sweeps at its interval and keeps the pace that replies promise."""

import asyncio

import structlog

from db import liveness
from db.database import Database
from db.errors import Unavailable
from db.liveness import Pace
from graph.settings import Settings

log = structlog.get_logger()


class Pacemaker:
    """Holds the pace of the fleet, as of the last sweep."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self.pace: Pace = settings.pace()

    async def sweep(self) -> int:
        """Marks what is overdue, until nothing is, and adjusts the pace; returns the changes."""
        changed = 0
        while True:
            async with self._database.write() as session:
                swept = await liveness.sweep(session, self.pace)
            changed += swept
            if swept < liveness.SWEEP_LIMIT:
                break
        async with self._database.read() as session:
            self.pace = self._settings.pace(await liveness.count_live(session))
        if changed:
            log.info("sweep.changed", nodes=changed)
        return changed

    async def run(self) -> None:
        """Sweeps for ever; goes on when the database is away and comes back."""
        while True:
            await asyncio.sleep(self._settings.sweep_interval_seconds)
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning("sweep.unavailable", cause=repr(error.__cause__))
