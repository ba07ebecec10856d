"""The configured database, for as long as somebody uses it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import URL

from db.core.database import Database
from db.core.migrate import migrate, require_current_schema
from db.embedded.data_dir_lock import DataDirInUse
from db.embedded.server import get_running_url, run_embedded_postgres
from graph.core.settings import Settings

_OTHER_CONNECTIONS = 10  # psql, `node-registry migrate`, and PostgreSQL's own reserve


@asynccontextmanager
async def open_database_url(settings: Settings) -> AsyncIterator[URL]:
    """The configured PostgreSQL, or one of our own for as long as the block lasts."""
    if (external := settings.external_database) is not None:
        yield external
        return
    connections = settings.database_connections + _OTHER_CONNECTIONS
    options = {"max_connections": str(max(100, connections))}
    async with run_embedded_postgres(settings.data_dir, options=options) as url:
        yield url


@asynccontextmanager
async def open_shared_database_url(settings: Settings) -> AsyncIterator[URL]:
    """As `open_database_url`, beside a registry that may be running on it."""
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(open_database_url(settings))
        except DataDirInUse:
            url = get_running_url(settings.data_dir)
        yield url


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """At this version's schema: the embedded one is brought there, any other has to be.

    Raises SchemaMismatch, Unavailable and what the embedded server raises.
    """
    async with open_database_url(settings) as url:
        database = Database(
            url,
            pool_size=settings.db_pool_size,
            statement_timeout_seconds=settings.db_statement_timeout_seconds,
        )
        try:
            await database.ping()
            if settings.external_database is None:
                await migrate(database.engine)
            await require_current_schema(database.engine)
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def open_shared_database(settings: Settings) -> AsyncIterator[Database]:
    """As `open_database`, beside a registry that may be running on it."""
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(settings))
        except DataDirInUse:
            database = Database(get_running_url(settings.data_dir))
            stack.push_async_callback(database.close)
            await require_current_schema(database.engine)
        yield database
