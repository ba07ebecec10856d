"""Fixtures of a real PostgreSQL: a migrated template, and copies of it for the tests."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from db.core.database import Database
from db.core.migrate import migrate
from db.embedded.server import run_embedded_postgres
from db.retention import partitions
from tests.support.clusters import FAST, temporary_folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[URL]:
    """Yield the URL of the server in NODE_REGISTRY_DATABASE_URL, or of a temporary one."""
    configured_url = os.environ.get("NODE_REGISTRY_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if configured_url:
        yield make_url(configured_url).set(drivername="postgresql+asyncpg")
        return
    with temporary_folder() as folder:
        async with run_embedded_postgres(folder, options=FAST) as url:
            yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def administrator(postgres: URL) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(postgres, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(administrator: AsyncConnection) -> AsyncIterator[str]:
    async with _create_database(administrator) as url:
        database = Database(url)
        await migrate(database.engine)
        async with database.write() as session:
            await partitions.make_day_partitions(session)
        await database.close()
        yield str(url.database)


@pytest_asyncio.fixture(loop_scope="session")
async def database_url(administrator: AsyncConnection, template: str) -> AsyncIterator[URL]:
    """Yield the URL of a migrated database for this test."""
    async with _create_database(administrator, template) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_database_url(administrator: AsyncConnection, template: str) -> AsyncIterator[URL]:
    """Yield the URL of a migrated database for this module."""
    async with _create_database(administrator, template) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def empty_database_url(administrator: AsyncConnection) -> AsyncIterator[URL]:
    async with _create_database(administrator) as url:
        yield url


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@asynccontextmanager
async def _create_database(
    administrator: AsyncConnection, template: str = "template1"
) -> AsyncIterator[URL]:
    name = f"node_registry_test_{secrets.token_hex(6)}"
    # The default strategy also writes each page to the write-ahead log.
    await administrator.execute(
        text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    )
    try:
        yield administrator.engine.url.set(database=name)
    finally:
        await administrator.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest_asyncio.fixture(loop_scope="session")
async def service_name(administrator: AsyncConnection) -> AsyncIterator[str]:
    """Yield the name for a database and its service, which are dropped after the test."""
    name = f"registry {secrets.token_hex(4)}"
    yield name
    await administrator.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    for role in (name, f"{name}_owner"):
        await administrator.execute(text(f'DROP ROLE IF EXISTS "{role}"'))
