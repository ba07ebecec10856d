"""The app in uvicorn, with signals handled from before the start until everything is closed."""

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
from graph.auth.connection_limits import ConnectionLimits
from graph.core.settings import Settings
from graph.live.background_tasks import BackgroundTasks
from graph.server.connection_guards import (
    is_long_lived,
    make_http_protocol,
)
from graph.server.file_limits import count_connection_files
from graph.server.listener import finish_startup, listen
from graph.server.signals import handle_stop_signals
from graph.server.tls_context import create_tls_context
from graph.services import Services

_KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `serve` and drains its clients gradually.

    uvicorn itself re-raises signals when it ends, so that nothing after it, such as PostgreSQL,
    would be closed.
    """

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._draining = asyncio.Event()
        self._hurrying = asyncio.Event()

    def drain(self) -> None:
        """Drain the clients and end; further calls have no effect."""
        self.should_exit = True
        self._draining.set()

    def stop(self) -> None:
        """Drain the clients and end; on a second call, end without waiting for them."""
        if self.should_exit:
            self.force_exit = True
            self._hurrying.set()
        self.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Run as uvicorn does, but end at once on `drain` instead of at the next tick."""
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._draining.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, then close the long-lived ones at random times.

        This spreads their reconnections too: graphql-transport-ws clients reconnect on code 1012
        (service restart), and an event stream without a last event counts as a lost connection.
        """
        for server in self.servers:
            server.close()
        long_lived = [
            connection for connection in self.server_state.connections if is_long_lived(connection)
        ]
        await asyncio.gather(*(self._shut_down_later(connection) for connection in long_lived))
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        # Without clients there is no need for the tenth of a second that uvicorn would wait.
        for server in self.servers:
            await server.wait_closed()

    async def _shut_down_later(
        self, connection: HttpToolsProtocol | WebSocketsSansIOProtocol
    ) -> None:
        delay = random.uniform(0, self._drain_seconds)  # noqa: S311  # no secret
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._hurrying.wait()
        if connection in self.server_state.connections:
            connection.shutdown()


def create_server(services: Services) -> Server:
    """Return a server of the app, and watch its certificates in a background task.

    Raises: ConfigurationError: a certificate cannot be used.
    """
    settings = services.settings
    tls = create_tls_context(settings)
    if tls is not None:
        services.background_tasks.start("tls", tls.watch_files)
        services.metrics.add_gauge(
            "node_registry_tls_certificate_expiry_timestamp_seconds",
            "Time at which the certificate of new connections expires.",
            lambda: tls.expires_at.timestamp(),  # noqa: PLW0108  # a reload replaces it
        )
    limits = ConnectionLimits(
        count_connection_files(settings),
        max_per_address=settings.max_unknown_connections_per_address,
    )
    services.metrics.add_gauge(
        "node_registry_open_connections", "Open connections of any kind.", lambda: limits.open
    )
    services.metrics.add_counter(
        "node_registry_connections_cut",
        "Connections of unknown peers that were closed to make room.",
        lambda: limits.cut,
    )
    return Server(
        uvicorn.Config(
            build_app(services),
            ssl_context_factory=None if tls is None else lambda *_: tls,
            http=make_http_protocol(settings, limits),
            ws="websockets-sansio",  # which that protocol replaces by its own
            # Compression would cost each connection more memory than its subscription.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # uvicorn would trust loopback, or whatever FORWARDED_ALLOW_IPS says.
            proxy_headers=False,
            ws_max_size=settings.max_body_bytes,
            ws_ping_interval=settings.keepalive_seconds,
            ws_ping_timeout=settings.keepalive_seconds,
            # Longer than the interval of heartbeats, so that an agent finds its connection open.
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        ),
        drain_seconds=settings.drain_seconds,
    )


def _freeze_heap() -> None:
    """Exclude the objects of the started app from garbage collection, and collect seldom later.

    Requests and connections leave no reference cycles, so a collection finds live objects only.
    With ten thousand connections it blocks all responses for a second, and for a quarter of one
    even if it visits only what their last heartbeats left. Cycles of libraries are still collected,
    after some seven million objects that were not freed, which is less than a gigabyte.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 1, 10)


async def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM, and return when everything is closed.

    Raises: BackgroundTaskDied, ConfigurationError, OSError, and the errors of `open_services`.
    """
    with handle_stop_signals() as set_stop_handler, listen(settings) as listener:
        async with open_services(settings) as services:
            server = create_server(services)
            finish_startup(listener, settings, services.background_tasks)
            set_stop_handler(server.stop)
            await run_until_stopped(server, listener, services.background_tasks)


async def run_until_stopped(
    server: Server, listener: socket.socket, background_tasks: BackgroundTasks
) -> None:
    """Run the server until it is stopped or a background task dies, then drain it.

    A registry without one of its tasks would mislead its users; a restart makes it whole.

    Raises: BackgroundTaskDied.
    """
    background_tasks.on_failure = server.drain
    if background_tasks.failed:
        server.drain()
    _freeze_heap()
    await server.serve(sockets=[listener])
    background_tasks.check_all()
