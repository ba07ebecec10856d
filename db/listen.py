"""Hears of status changes: LISTEN on one connection, kept alive and made again when it is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from db.changes import CHANNEL
from db.database import Database


class Listener:
    """Wakes its caller when a change was committed, anywhere; says nothing of which."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._woken = asyncio.Event()

    async def wait(self, timeout_seconds: float) -> int:
        """Returns the log's revision, after a change or after the timeout, whichever is first.

        Asking for it is also what finds a dead connection: raises OSError, TimeoutError or
        asyncpg's errors then.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
        revision: int = await self._connection.fetchval(
            "SELECT revision FROM registry_state", timeout=timeout_seconds
        )
        return revision

    def wake(self, *_: object) -> None:
        self._woken.set()


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator[Listener]:
    """Listens from here on; what was committed before is for the caller to read."""
    connection = await database.listening_connection()
    listener = Listener(connection)
    try:
        connection.add_termination_listener(listener.wake)
        await connection.add_listener(CHANNEL, listener.wake)
        yield listener
    finally:
        connection.terminate()
