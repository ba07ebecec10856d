"""The engine and its pool: the one way to a connection, and where its failures get their name."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import orjson
from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import (
    DBAPIError,
    DisconnectionError,
    EmulatedDBAPIException,
    InvalidRequestError,
    PendingRollbackError,
    ResourceClosedError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.util import greenlet_spawn

from db.core.errors import Unavailable

_RETRY_AFTER_SECONDS = 1.0
LISTEN_TIMEOUT_SECONDS = 5
"""Within which the connection beside the pool has to answer."""

_TYPE_OPTIONS: dict[str, Any] = {
    "native_inet_types": False,
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
}
_TRANSIENT_SQLSTATE_CLASSES = {"08", "40", "53", "55", "57"}
"""SQLSTATE classes that pass by themselves: connection, rollback, resources, locks, operator."""


class Database:
    """A bounded pool of connections to one PostgreSQL database.

    Its blocks raise Unavailable where the database cannot be reached, is too busy, gave up a
    statement, or has not done all that a block asks within twice the time of one statement; other
    errors of PostgreSQL are faults of ours and pass through as they are. `failures` counts the
    former, those of the pools beside it too.
    """

    def __init__(
        self, url: str | URL, *, pool_size: int = 10, statement_timeout_seconds: float = 10
    ) -> None:
        self.url = make_url(url).set(drivername="postgresql+asyncpg")
        self.pool_size = pool_size
        self._failure_count = 0
        self._separate_pools: list[Database] = []
        self._statement_timeout_seconds = statement_timeout_seconds
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=statement_timeout_seconds / 2,
            pool_use_lifo=True,
            hide_parameters=True,  # in errors, which are logged
            **_TYPE_OPTIONS,
            connect_args={
                "timeout": statement_timeout_seconds / 2,
                "server_settings": {
                    "application_name": "node-registry",
                    "statement_timeout": f"{statement_timeout_seconds:.3f}s",
                    "idle_in_transaction_session_timeout": f"{statement_timeout_seconds * 2:.3f}s",
                    "timezone": "UTC",
                    # Planning these short statements costs less than compiling them ever saves.
                    "jit": "off",
                },
            },
        )
        event.listen(self.engine.sync_engine, "checkout", _reject_closed_connection)
        self._autocommit_engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def failure_count(self) -> int:
        return self._failure_count + sum(each.failure_count for each in self._separate_pools)

    @asynccontextmanager
    async def open_separate_pool(self, pool_size: int) -> AsyncIterator["Database"]:
        """The same one by a pool apart, for what must not wait until others are done."""
        apart = Database(
            self.url,
            pool_size=pool_size,
            statement_timeout_seconds=self._statement_timeout_seconds,
        )
        self._separate_pools.append(apart)
        try:
            yield apart
        finally:
            await apart.close()

    @asynccontextmanager
    async def write(self, *, statement_seconds: float | None = None) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end of the block, undone when it raises.

        `statement_seconds` are for one whose statements give themselves another time.
        """
        async with (
            self._limit_time(statement_seconds),
            AsyncSession(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Each statement by itself, with its own snapshot and no round trip to begin or end."""
        async with (
            self._limit_time(),
            AsyncSession(self._autocommit_engine, expire_on_commit=False) as session,
        ):
            yield session

    @asynccontextmanager
    async def open_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """The driver's own connection, for statements of which each stands by itself."""
        async with self._limit_time():
            pooled = await self.engine.raw_connection()
            driver = pooled.driver_connection
            assert driver is not None  # noqa: S101  # it is connected
            try:
                yield driver
            except asyncio.CancelledError:
                driver.terminate()  # what it was asked may never be answered
                raise
            finally:
                await greenlet_spawn(pooled.close)

    async def ping(self) -> None:
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def measure_size_bytes(self) -> int:
        """On disk, indexes and all."""
        async with self.read() as session:
            size = await session.scalar(text("SELECT pg_database_size(current_database())"))
        return size or 0

    @asynccontextmanager
    async def open_listen_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection beside the pool, to LISTEN on and to read with, each statement by itself.

        It is given up at the end of the block, without a word to the server.
        """
        with self._translate_failures():
            engine = create_async_engine(  # for what it teaches the connection of our types
                self.url, poolclass=NullPool, async_creator=self.connect_to_listen, **_TYPE_OPTIONS
            )
            async with engine.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
                assert driver is not None  # noqa: S101  # it is connected
                try:
                    yield driver
                finally:
                    driver.terminate()

    async def connect_to_listen(self) -> asyncpg.Connection:
        """A connection beside the pool, for LISTEN; the caller closes it."""
        args, kwargs = self.engine.dialect.create_connect_args(self.url)
        with self._translate_failures():
            return await asyncpg.connect(
                *args,
                **kwargs,
                timeout=LISTEN_TIMEOUT_SECONDS,
                command_timeout=LISTEN_TIMEOUT_SECONDS,
                server_settings={"application_name": "node-registry-listen", "jit": "off"},
            )

    def count_connections_in_use(self) -> int:
        pool = self.engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101  # the kind that the engine was made with
        return pool.checkedout()

    async def close(self) -> None:
        await self.engine.dispose()

    @asynccontextmanager
    async def _limit_time(self, statement_seconds: float | None = None) -> AsyncIterator[None]:
        """A server that has vanished answers nothing, and ends no statement either."""
        with self._translate_failures():
            async with asyncio.timeout(2 * (statement_seconds or self._statement_timeout_seconds)):
                yield

    @contextmanager
    def _translate_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if _is_transient(error):
                self._failure_count += 1
                raise Unavailable(_RETRY_AFTER_SECONDS) from error
            raise


def _reject_closed_connection(dbapi_connection: object, *_: object) -> None:
    """After a restart of PostgreSQL the pool's sockets are closed already: no need to ask it."""
    if dbapi_connection.driver_connection.is_closed():  # type: ignore[attr-defined]  # asyncpg's
        raise DisconnectionError


def _is_transient(error: Exception) -> bool:
    match error:
        case OSError() | TimeoutError() | PoolTimeout() | DBAPIError(connection_invalidated=True):
            return True
        case InvalidRequestError():
            # The pool says no more than this when each connection ends as soon as it is made, and
            # a session when its connection was cut between two of its steps.
            return type(error) in {InvalidRequestError, PendingRollbackError, ResourceClosedError}
        case DBAPIError() | EmulatedDBAPIException():  # the latter when `driver` has none made
            said = error.orig
            return isinstance(said, Exception) and _is_transient(said)
        case asyncpg.CheckViolationError(constraint_name=None):
            # A row was on its way to the default partition while its own was made. Where there is
            # no default partition, PostgreSQL names the whole table: a fault of ours.
            return str(error.table_name).endswith("_default")
        case asyncpg.PostgresError():
            return (error.sqlstate or "")[:2] in _TRANSIENT_SQLSTATE_CLASSES
    # All that asyncpg itself says of a connection that was cut between two of its steps; more
    # special ones are mistakes of ours.
    return type(error) in {asyncpg.InterfaceError, asyncpg.InternalClientError}
