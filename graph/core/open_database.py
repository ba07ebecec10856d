"""The configured database, opened for as long as a block runs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import URL

from db.core.database import Database
from db.core.migrate import migrate, require_current_schema
from db.embedded.data_dir_lock import DataDirInUse
from db.embedded.server import get_running_url, run_embedded_postgres
from graph.core.settings import Settings

_OTHER_CONNECTIONS = 10  # for psql, `node-registry migrate` and PostgreSQL's own reserve


@asynccontextmanager
async def open_database_url(settings: Settings) -> AsyncIterator[URL]:
    """Yield the URL of the configured PostgreSQL, or run an embedded server while the block lasts.

    Raises: DataDirInUse, EmbeddedServerFailed.
    """
    if (external := settings.external_database) is not None:
        yield external
        return
    connections = settings.database_connections + _OTHER_CONNECTIONS
    options = {"max_connections": str(max(100, connections))}
    async with run_embedded_postgres(settings.data_dir, options=options) as url:
        yield url


@asynccontextmanager
async def open_shared_database_url(settings: Settings) -> AsyncIterator[URL]:
    """Yield the URL of the configured database, which a running registry may be using.

    If a registry runs the embedded server, its URL is used; otherwise this starts the server.
    """
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(open_database_url(settings))
        except DataDirInUse:
            url = get_running_url(settings.data_dir)
        yield url


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Yield the configured database at the schema of this version.

    An embedded database is migrated; an external one must have been migrated already.

    Raises: SchemaMismatch, Unavailable, DataDirInUse, EmbeddedServerFailed.
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
    """Yield the configured database as `open_database` does, even if a registry is using it.

    Raises: SchemaMismatch, Unavailable, EmbeddedServerFailed.
    """
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(settings))
        except DataDirInUse:
            database = Database(get_running_url(settings.data_dir))
            stack.push_async_callback(database.close)
            await require_current_schema(database.engine)
        yield database
