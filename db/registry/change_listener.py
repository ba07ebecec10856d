"""The notification of status changes: LISTEN on a connection of its own."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import asyncpg

from db.core.database import LISTEN_TIMEOUT_SECONDS, Database
from db.registry.status_changes import CHANNEL

NotificationHandler: TypeAlias = Callable[[str], object]
"""Takes the payload of a notification."""

_REVISION = re.compile(r"[0-9]{1,19}")

NO_HANDLERS: Mapping[str, NotificationHandler] = MappingProxyType({})


class BadNotification(Exception):
    """A notification of a change whose payload is no revision."""


class ChangeListener:
    """A connection that is notified of each status change that any process commits."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._notified = asyncio.Event()
        self._payload = ""

    async def wait_for_change(self, timeout_seconds: float) -> int:
        """Return the log's revision after the next change, or after the timeout.

        Raises: BadNotification: the notification has no revision; every user can send one.

        Raises: OSError, TimeoutError or an error of asyncpg: the connection is lost.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._notified.wait()
        except TimeoutError:
            return await self.read_revision()
        self._notified.clear()
        if self._connection.is_closed():
            raise ConnectionError("the listening connection was closed")
        return _parse_revision(self._payload)

    async def read_revision(self) -> int:
        """Read the log's revision over this connection, which finds out if it is dead.

        So the caller depends on no notification that could have been lost.
        """
        revision: int = await self._connection.fetchval("SELECT revision FROM registry_state")
        return revision

    @asynccontextmanager
    async def open_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield this connection, on which new changes are read without waiting for the pool."""
        yield self._connection

    def handle_notification(
        self, _connection: object, _pid: int, _channel: str, payload: str
    ) -> None:
        self._payload = payload  # notifications arrive in the order of the commits
        self._notified.set()

    def handle_close(self, _connection: object) -> None:
        self._notified.set()


@asynccontextmanager
async def open_listener(
    database: Database, handlers: Mapping[str, NotificationHandler] = NO_HANDLERS
) -> AsyncIterator[ChangeListener]:
    """Listen for status changes, and on the channels of `handlers` over the same connection.

    Raises: Unavailable: no connection could be made, or it was lost.
    """
    async with database.open_listen_connection() as connection:
        listener = ChangeListener(connection)
        connection.add_termination_listener(listener.handle_close)
        async with asyncio.timeout(LISTEN_TIMEOUT_SECONDS):
            await connection.add_listener(CHANNEL, listener.handle_notification)
            for channel, handler in handlers.items():
                await connection.add_listener(channel, partial(_handle_notification, handler))
        yield listener


def _parse_revision(payload: str) -> int:
    if not _REVISION.fullmatch(payload):
        raise BadNotification(payload)
    return int(payload)


def _handle_notification(
    handler: NotificationHandler, _connection: object, _pid: int, _channel: str, payload: str
) -> None:
    handler(payload)
