"""How much of the storage that the registry may use is in use."""

import asyncio
import math
import shutil
from contextlib import suppress

from db.core.database import Database
from graph.core.settings import Settings

WARNING_PRESSURE = 0.8
"""From here on a warning is logged, before anything is dropped."""


class Storage:
    """The database's size against its limit, and the free disk of the embedded PostgreSQL."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._max_bytes = settings.max_database_bytes or math.inf
        self._min_free_bytes = settings.min_free_disk_bytes
        self._data_dir = settings.data_dir if settings.external_database is None else None

    async def measure_pressure(self) -> float:
        """Return a ratio: from 1 on old data must go.

        It is the database's size by its limit, or the free disk to keep by the free disk, if that
        is more. Raises: Unavailable.
        """
        pressures = [await self._database.measure_size_bytes() / self._max_bytes]
        if self._data_dir is not None:
            with suppress(FileNotFoundError):  # another program runs PostgreSQL
                usage = await asyncio.to_thread(shutil.disk_usage, self._data_dir)
                pressures.append(self._min_free_bytes / max(usage.free, 1))
        return max(pressures)
