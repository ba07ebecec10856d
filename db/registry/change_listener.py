"""Hears of status changes: LISTEN on a connection of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import asyncpg

from db.core.database import LISTEN_TIMEOUT_SECONDS, Database
from db.registry.status_changes import CHANNEL

NotificationHandler: TypeAlias = Callable[[str], object]
"""Gets the payload of each notification on a channel."""

NO_HANDLERS: Mapping[str, NotificationHandler] = MappingProxyType({})


class ChangeListener:
    """Wakes its caller when a change was committed, by whatever process."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._woken = asyncio.Event()
        self._newest = 0

    async def wait_for_change(self, timeout_seconds: float) -> int:
        """The log's revision, after the next change or after the timeout.

        Raises OSError, TimeoutError or asyncpg's errors when the connection is lost.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._woken.wait()
        except TimeoutError:
            return await self.read_revision()
        self._woken.clear()
        if self._connection.is_closed():
            raise ConnectionError("the connection that listens was closed")
        return self._newest

    async def read_revision(self) -> int:
        """Asks the connection itself: so a dead one is found, and no notification is relied on."""
        revision: int = await self._connection.fetchval("SELECT revision FROM registry_state")
        return revision

    @asynccontextmanager
    async def open_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Its own connection: what is new is read without waiting for one of the pool."""
        yield self._connection

    def handle_notification(
        self, _connection: object, _pid: int, _channel: str, payload: str
    ) -> None:
        self._newest = int(payload)  # they come in the order of the commits
        self._woken.set()

    def handle_close(self, _connection: object) -> None:
        self._woken.set()


@asynccontextmanager
async def open_listener(
    database: Database, others: Mapping[str, NotificationHandler] = NO_HANDLERS
) -> AsyncIterator[ChangeListener]:
    """`others` hear the payloads on other channels, on the same connection.

    Raises Unavailable when there is no connection to be had, or it is lost.
    """
    async with database.open_listen_connection() as connection:
        listener = ChangeListener(connection)
        connection.add_termination_listener(listener.handle_close)
        async with asyncio.timeout(LISTEN_TIMEOUT_SECONDS):
            await connection.add_listener(CHANNEL, listener.handle_notification)
            for channel, hear in others.items():
                await connection.add_listener(channel, partial(_handle_notification, hear))
        yield listener


def _handle_notification(
    hear: NotificationHandler, _connection: object, _pid: int, _channel: str, payload: str
) -> None:
    hear(payload)
