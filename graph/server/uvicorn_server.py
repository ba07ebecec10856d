"""Runs the app in uvicorn, from the first signal that may come to the last thing to be closed."""

import asyncio
import contextlib
import gc
import random
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.app import build_app, open_services
from graph.core.settings import Settings
from graph.live.background_tasks import BackgroundTasks
from graph.server.connection_guards import http_protocol, stays_open, websocket_protocol
from graph.server.listener import begin_serving, listen
from graph.server.signals import stoppable
from graph.server.tls_context import context_of
from graph.services import Services

_KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn raises them anew once it is done, and what has to be
    closed after it, PostgreSQL included, would not be.
    """

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._draining = asyncio.Event()
        self._hurried = asyncio.Event()

    def drain(self) -> None:
        """Lets clients go, and ends; that it is called once more changes nothing."""
        self.should_exit = True
        self._draining.set()

    def stop(self) -> None:
        """Drains; called once more, ends without waiting for anyone."""
        if self.should_exit:
            self.force_exit = True
            self._hurried.set()
        self.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """As uvicorn's, which looks ten times a second whether it is to end."""
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._draining.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections, then spreads the goodbyes, and with them the returns.

        1012, service restart, is a code at which graphql-transport-ws clients connect again; an
        event stream that ends without a last event is to them a lost connection.
        """
        for server in self.servers:
            server.close()
        staying = [
            connection for connection in self.server_state.connections if stays_open(connection)
        ]
        await asyncio.gather(*(self._let_go(connection) for connection in staying))
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        # Nobody is there whom uvicorn would give a tenth of a second to say goodbye.
        for server in self.servers:
            await server.wait_closed()

    async def _let_go(self, connection: HttpToolsProtocol | WebSocketsSansIOProtocol) -> None:
        delay = random.uniform(0, self._drain_seconds)  # noqa: S311  # no secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._hurried.wait()
        if connection in self.server_state.connections:
            connection.shutdown()


def configured(services: Services) -> Server:
    """Raises ConfigurationError for certificates that cannot be used."""
    settings = services.settings
    tls = context_of(settings)
    if tls is not None:
        services.background_tasks.start("tls", tls.keep_renewed())
        services.metrics.add_gauge(
            "node_registry_tls_certificate_expiry_timestamp_seconds",
            "When the certificate ends that new connections are shown.",
            lambda: tls.expires_at.timestamp(),  # noqa: PLW0108  # another one once it is renewed
        )
    return Server(
        uvicorn.Config(
            build_app(services),
            ssl_context_factory=None if tls is None else lambda *_: tls,
            http=http_protocol(settings),
            ws=websocket_protocol(settings),
            # Compression costs each connection more memory than its subscription.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws_max_size=settings.max_body_bytes,
            ws_ping_interval=settings.keepalive_seconds,
            ws_ping_timeout=settings.keepalive_seconds,
            # Longer than the pace of heartbeats, so that an agent finds its connection open.
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        ),
        drain_seconds=settings.drain_seconds,
    )


def _spare_the_collector() -> None:
    """Once all is built: what is there now stays, and need not be looked through ever again.

    What ends leaves no cycle, so all that the collector goes through is alive: of ten thousand
    connections that takes a second in which nothing is answered, and a quarter of one for what
    their last heartbeats left alone. For the cycles of libraries it looks nevertheless, after some
    seven million objects that were not freed, which is less than a gigabyte.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 1, 10)


async def serve(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM, when everything is closed.

    Raises BackgroundTaskDied, as `run_until_stopped`.
    """
    with stoppable() as stop_by, listen(settings) as listening:
        async with open_services(settings) as services:
            server = configured(services)
            begin_serving(listening, settings, services.background_tasks)
            stop_by(server.stop)
            await run_until_stopped(server, listening, services.background_tasks)


async def run_until_stopped(
    server: Server, listening: socket.socket, supervisor: BackgroundTasks
) -> None:
    """Raises BackgroundTaskDied, after it has drained, when one did: half a registry misleads its
    users, and whoever keeps the process alive starts it whole.
    """
    supervisor.when_failed = server.drain
    if supervisor.failed:
        server.drain()
    _spare_the_collector()
    await server.serve(sockets=[listening])
    supervisor.require_all()
