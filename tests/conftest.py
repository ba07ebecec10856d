"""A real PostgreSQL, a migrated template that each test clones, a real server on a free port."""

import asyncio
import gc
import logging
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, settings
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs
from structlog.types import EventDict

from db import partitions
from db.database import Database
from db.embedded import embedded_postgres
from db.migrate import migrate
from graph.address import listen
from graph.app import running_services
from graph.server import configured
from graph.services import Services
from graph.settings import Settings
from tests.support.clusters import FAST, data_dir, made_cluster, new_data_dir, temporary_folder

__all__ = ["data_dir", "made_cluster", "new_data_dir"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="more examples and larger fleets, for minutes"
    )


def pytest_configure() -> None:
    """A property is not wrong because the machine is busy.

    What is imported by now stays; else the collector takes an eighth of the tests' time.
    """
    settings.register_profile(
        "at leisure", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("at leisure")
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def thorough(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--thorough"))


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("NODE_REGISTRY_", "NODE_AGENT_"))]:
        monkeypatch.delenv(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[URL]:
    """NODE_REGISTRY_DATABASE_URL names a running server to test on; else one is started."""
    given = os.environ.get("NODE_REGISTRY_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if given:
        yield make_url(given).set(drivername="postgresql+asyncpg")
        return
    with temporary_folder() as folder:
        async with embedded_postgres(folder, options=FAST) as url:
            yield url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def administrator(postgres: URL) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(postgres, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(administrator: AsyncConnection) -> AsyncIterator[str]:
    async with _new_database(administrator) as url:
        database = Database(url)
        await migrate(database.engine)
        async with database.write() as session:
            await partitions.make_days(session)
        await database.close()
        yield str(url.database)


@pytest_asyncio.fixture(loop_scope="session")
async def database_url(administrator: AsyncConnection, template: str) -> AsyncIterator[URL]:
    """A migrated database of the test's own."""
    async with _new_database(administrator, template) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_database_url(administrator: AsyncConnection, template: str) -> AsyncIterator[URL]:
    """A migrated database of the module's own."""
    async with _new_database(administrator, template) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def empty_database_url(administrator: AsyncConnection) -> AsyncIterator[URL]:
    async with _new_database(administrator) as url:
        yield url


@pytest.fixture
async def database(database_url: URL) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


@asynccontextmanager
async def _new_database(
    administrator: AsyncConnection, template: str = "template1"
) -> AsyncIterator[URL]:
    name = f"node_registry_test_{secrets.token_hex(6)}"
    # The other strategy writes each page into the log, too.
    await administrator.execute(
        text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    )
    try:
        yield administrator.engine.url.set(database=name)
    finally:
        await administrator.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest_asyncio.fixture(loop_scope="session")
async def service_name(administrator: AsyncConnection) -> AsyncIterator[str]:
    """Of a database and its service, both of which are gone when the test is."""
    name = f"registry {secrets.token_hex(4)}"
    yield name
    await administrator.execute(text(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))
    for role in (name, f"{name}_owner"):
        await administrator.execute(text(f'DROP ROLE IF EXISTS "{role}"'))


@dataclass(frozen=True)
class LiveServer:
    """A registry that listens on a real socket."""

    url: str
    services: Services
    http: httpx.AsyncClient

    @property
    def graphql_url(self) -> str:
        return f"{self.url}/graphql"

    @property
    def websocket_url(self) -> str:
        return self.graphql_url.replace("http", "ws", 1)

    async def post(self, query: str, **variables: Any) -> dict[str, Any]:
        """The whole response body, errors included."""
        response = await self.http.post("/graphql", json={"query": query, "variables": variables})
        body: dict[str, Any] = response.json()
        return body

    async def execute(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an operation that must succeed."""
        body = await self.post(query, **variables)
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data


# Without it each client reads all the authorities of the world anew.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

StartServer = Callable[..., AbstractAsyncContextManager[LiveServer]]


@asynccontextmanager
async def serving(database_url: URL, data_dir: Path, **options: Any) -> AsyncIterator[LiveServer]:
    settings = Settings(
        **{
            "database_url": database_url.render_as_string(hide_password=False),
            "http_port": 0,
            "data_dir": data_dir,
            "shutdown_seconds": 1,
            "drain_seconds": 0,
            **options,
        }
    )
    async with running_services(settings) as services:
        with listen(settings) as listening:
            server = configured(services)
            task = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started:  # uvicorn has no event for it
                await asyncio.sleep(0.005)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                async with httpx.AsyncClient(base_url=url, timeout=30, verify=NO_TLS) as http:
                    yield LiveServer(url, services, http)
            finally:
                server.drain()
                await task


@pytest.fixture
def start_server(database_url: URL, tmp_path: Path) -> StartServer:
    """Starts servers on the test's database, each with the settings it is given."""
    return partial(serving, database_url, tmp_path)


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[LiveServer]:
    async with start_server() as live:
        yield live


@pytest.fixture
async def quiet_server(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveServer]:
    """A server that does nothing by itself while the test looks at what it does."""
    monkeypatch.setattr("graph.shared_rates.INTERVAL_SECONDS", 3600)
    async with start_server(sweep_interval_seconds=3600, listen_check_seconds=300) as live:
        yield live


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[EventDict]]:
    """What the registry logs during the test. Errors fail it, unless the test takes them out."""
    with capture_logs([merge_contextvars]) as events:
        yield events
    levels = {"error", "critical"}
    assert not [event for event in events if event["log_level"] in levels]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveServer]:
    """One server for the tests of a module that leave nothing behind; they share its loop."""
    async with serving(shared_database_url, tmp_path_factory.mktemp("shared")) as live:
        yield live
