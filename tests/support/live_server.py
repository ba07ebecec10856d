"""A registry that listens on a real socket, in the process and the event loop of its test."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import URL

from graph.app import open_services
from graph.core.settings import Settings
from graph.server.listener import listen
from graph.server.uvicorn_server import create_server
from graph.services import Services
from tests.support.waiting import wait_until


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
        """Send an operation; return the whole response body, errors included."""
        response = await self.http.post("/graphql", json={"query": query, "variables": variables})
        body: dict[str, Any] = response.json()
        return body

    async def execute(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send an operation that must succeed; return its data."""
        body = await self.post(query, **variables)
        assert "errors" not in body, body["errors"]
        data: dict[str, Any] = body["data"]
        return data


# Without it each client loads the system's certificate authorities again.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

StartServer = Callable[..., AbstractAsyncContextManager[LiveServer]]


@asynccontextmanager
async def run_server(
    database_url: URL, data_dir: Path, **options: Any
) -> AsyncIterator[LiveServer]:
    settings = Settings(
        **{
            "database_url": database_url.render_as_string(hide_password=False),
            "http_port": 0,
            "data_dir": data_dir,
            # Tests send a node's heartbeats as fast as they can.
            "heartbeats_per_interval": 1_000_000,
            "shutdown_seconds": 1,
            "drain_seconds": 0,
            **options,
        }
    )
    async with open_services(settings) as services:
        with listen(settings) as listening:
            server = create_server(services)
            task = asyncio.create_task(server.serve(sockets=[listening]))
            await wait_until(lambda: server.started, seconds=60)  # uvicorn has no event for it
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                async with httpx.AsyncClient(base_url=url, timeout=30, verify=NO_TLS) as http:
                    yield LiveServer(url, services, http)
            finally:
                server.drain()
                await task


@pytest.fixture
def start_server(database_url: URL, tmp_path: Path) -> StartServer:
    """Return a function that starts a server with the given settings on the test's database."""
    return partial(run_server, database_url, tmp_path)


@pytest.fixture
async def server(start_server: StartServer) -> AsyncIterator[LiveServer]:
    async with start_server() as live:
        yield live


@pytest.fixture
async def quiet_server(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveServer]:
    """Yield a server without periodic work, so that a test can observe its statements."""
    monkeypatch.setattr("graph.auth.rate_sync.INTERVAL_SECONDS", 3600)
    async with start_server(sweep_interval_seconds=3600, listen_check_seconds=300) as live:
        yield live


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveServer]:
    """Yield a server for the tests of a module that change nothing; they share its event loop."""
    async with run_server(shared_database_url, tmp_path_factory.mktemp("shared")) as live:
        yield live
