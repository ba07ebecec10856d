"""The engine and its pool: every connection comes from here, and failures become Unavailable."""

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
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from db.core.errors import Unavailable

_RETRY_AFTER_SECONDS = 1.0
LISTEN_TIMEOUT_SECONDS = 5
"""Time limit of each request to a connection that listens."""

_DISK_FULL = "53100"
_TRANSIENT_SQLSTATE_CLASSES = {"08", "40", "53", "55", "57"}
"""Classes of errors that pass by themselves: connection, rollback, resources, locks, operator."""


class Database:
    """A bounded pool of connections to one PostgreSQL database.

    Its blocks raise Unavailable if the database cannot be reached, is too busy, gave up a
    statement, or did not do everything within a block in twice the time of one statement. Other
    errors of PostgreSQL are bugs of the registry and pass through unchanged. `failure_count` is
    the number of times that Unavailable was raised, including by separate pools. `disk_full` is set
    when PostgreSQL found no space for a write; who makes room clears it.
    """

    def __init__(
        self, url: str | URL, *, pool_size: int = 10, statement_timeout_seconds: float = 10
    ) -> None:
        self.url = make_url(url).set(drivername="postgresql+asyncpg")
        self.pool_size = pool_size
        self._failure_count = 0
        self.disk_full = asyncio.Event()
        self._separate_pools: list[Database] = []
        self._statement_timeout_seconds = statement_timeout_seconds
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=statement_timeout_seconds / 2,
            pool_use_lifo=True,
            hide_parameters=True,  # in errors, which are logged
            native_inet_types=False,
            json_serializer=lambda value: orjson.dumps(value).decode(),
            json_deserializer=orjson.loads,
            connect_args={
                "timeout": statement_timeout_seconds / 2,
                "server_settings": {
                    "application_name": "node-registry",
                    "statement_timeout": f"{statement_timeout_seconds:.3f}s",
                    "idle_in_transaction_session_timeout": f"{statement_timeout_seconds * 2:.3f}s",
                    "timezone": "UTC",
                    # Compiling these short statements costs more than it ever saves.
                    "jit": "off",
                },
            },
        )
        event.listen(self.engine.sync_engine, "checkout", _reject_closed_connection)
        self._autocommit_engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def failure_count(self) -> int:
        return self._failure_count + sum(pool.failure_count for pool in self._separate_pools)

    @asynccontextmanager
    async def open_separate_pool(self, pool_size: int) -> AsyncIterator["Database"]:
        """Yield the same database with its own pool, for work that must not wait for other work."""
        database = Database(
            self.url,
            pool_size=pool_size,
            statement_timeout_seconds=self._statement_timeout_seconds,
        )
        database.disk_full = self.disk_full
        self._separate_pools.append(database)
        try:
            yield database
        finally:
            await database.close()

    @asynccontextmanager
    async def write(self, *, statement_seconds: float | None = None) -> AsyncIterator[AsyncSession]:
        """Yield a session in one transaction, which is rolled back if the block raises.

        `statement_seconds` bounds the block where its statements set a timeout of their own.
        Raises: Unavailable.
        """
        async with (
            self._limit_time(statement_seconds),
            AsyncSession(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Yield a session without a transaction: each statement has its own snapshot.

        No round trip is spent to begin or to end. Raises: Unavailable.
        """
        async with (
            self._limit_time(),
            AsyncSession(self._autocommit_engine, expire_on_commit=False) as session,
        ):
            yield session

    @asynccontextmanager
    async def open_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield the driver's connection from the pool, for statements that each stand alone.

        JSON arrives decoded, an inet address as text, an enum as its text. Raises: Unavailable.
        """
        async with self._limit_time():
            pooled = await self.engine.raw_connection()
            driver = pooled.driver_connection
            assert driver is not None  # noqa: S101  # it is connected
            try:
                yield driver
            except asyncio.CancelledError:
                driver.terminate()  # its last request may never be answered
                raise
            finally:
                await greenlet_spawn(pooled.close)

    async def ping(self) -> None:
        """Check that the database answers. Raises: Unavailable."""
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def measure_size_bytes(self) -> int:
        """Return the size of the database on disk in bytes, indexes included."""
        async with self.read() as session:
            size = await session.scalar(text("SELECT pg_database_size(current_database())"))
        return size or 0

    @asynccontextmanager
    async def open_listen_connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection outside the pool, to LISTEN on and for single statements.

        Its values arrive as those of `open_connection`. It is cut at the end of the block without
        a message to the server. Raises: Unavailable.
        """
        with self._translate_failures():
            connection = await self.connect_to_listen()
            try:
                await _decode_values(connection)
                yield connection
            finally:
                connection.terminate()

    async def connect_to_listen(self) -> asyncpg.Connection:
        """Return a connection outside the pool, to LISTEN on. The caller closes it.

        Raises: Unavailable.
        """
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
        """Bound the block: a server that vanished answers nothing and ends no statement."""
        with self._translate_failures():
            async with asyncio.timeout(2 * (statement_seconds or self._statement_timeout_seconds)):
                yield

    @contextmanager
    def _translate_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_transient(error):
                self._failure_count += 1
                if _find_sqlstate(error) == _DISK_FULL:
                    self.disk_full.set()
                raise Unavailable(_RETRY_AFTER_SECONDS) from error
            raise


async def _decode_values(connection: asyncpg.Connection) -> None:
    """Have the connection decode values as SQLAlchemy has those of the pool do it."""
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=orjson.loads)
    await connection.set_type_codec("inet", schema="pg_catalog", encoder=str, decoder=str)


def _reject_closed_connection(dbapi_connection: Any, *_: object) -> None:
    """Have the pool drop a socket that PostgreSQL closed as it restarted, without a round trip."""
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError


def _find_sqlstate(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code of the error, None if it is not PostgreSQL's."""
    while isinstance(error, DBAPIError | EmulatedDBAPIException):
        error = error.orig
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later, unchanged: then it is Unavailable."""
    match error:
        case OSError() | TimeoutError() | PoolTimeout() | DBAPIError(connection_invalidated=True):
            return True
        case InvalidRequestError():
            # The pool raises no more than this if each connection ends as soon as it is made, and
            # a session if its connection was cut between two of its steps.
            return type(error) in {InvalidRequestError, PendingRollbackError, ResourceClosedError}
        case DBAPIError() | EmulatedDBAPIException():  # the latter of raw_connection()
            cause = error.orig
            return isinstance(cause, Exception) and is_transient(cause)
        case asyncpg.CheckViolationError(constraint_name=None):
            # A row was on its way to the default partition while its own partition was made. If
            # there is no default partition, PostgreSQL names the whole table: a bug of ours.
            return str(error.table_name).endswith("_default")
        case asyncpg.PostgresError():
            return (error.sqlstate or "")[:2] in _TRANSIENT_SQLSTATE_CLASSES
    # What asyncpg itself raises for a connection that was cut between two of its steps; its
    # subclasses stand for misuse.
    return type(error) in {asyncpg.InterfaceError, asyncpg.InternalClientError}
