"""Runs the app in uvicorn, from the first signal that may come to the last thing to be closed."""

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator

import click
import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.app import build_app, running_services
from graph.dev_agent import keep_dev_agent
from graph.services import Services
from graph.settings import Settings
from graph.stalled import http_protocol, stays_open, websocket_protocol
from graph.supervisor import Supervisor
from graph.tls import context_of
from graph.version import VERSION

log = structlog.get_logger()

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn raises them anew once it is done, and what has to be
    closed after it, PostgreSQL included, would not be.
    """

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds
        self._hurried = asyncio.Event()

    def drain(self) -> None:
        """Lets clients go, and ends; that it is called once more changes nothing."""
        self.should_exit = True

    def stop(self) -> None:
        """Drains; called once more, ends without waiting for anyone."""
        if self.should_exit:
            self.force_exit = True
            self._hurried.set()
        self.drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

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
        await super().shutdown(sockets)

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
        services.supervisor.start("tls", tls.keep_renewed())
        services.metrics.watch(
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


def _forget_garbage() -> None:
    """Once all is built: what is there now stays, and need not be looked through ever again.

    Each full collection would stop the process for a tenth of a second otherwise.
    """
    gc.collect()
    gc.freeze()


def listen(settings: Settings, *, reuse_port: bool = False) -> socket.socket:
    """Raises OSError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    address = (settings.http_host, settings.http_port)
    listening = socket.create_server(
        address, family=family, backlog=_BACKLOG, reuse_port=reuse_port
    )
    # What is accepted inherits it: asyncio itself misses such sockets, and every answer to a
    # connection that is kept waits 40 ms for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A machine that vanished acknowledges nothing; an event stream would tell it for long.
        seconds = 2 * settings.keepalive_seconds
        if settings.tls_certificate is not None:
            # What a reader does not take waits behind TLS, where `graph.stalled` does not see it.
            seconds = min(seconds, settings.stalled_reader_seconds)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))
    return listening


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[Callable[[], None]], None]]:
    """SIGINT and SIGTERM cancel the block, until it names what they call instead.

    SIGHUP does so where a terminal was closed. Elsewhere it is for what reads its files again, and
    the registry does that by itself.
    """
    main = asyncio.current_task()
    assert main is not None  # noqa: S101  # a loop that runs, runs a task
    ways: list[Callable[[], object]] = [main.cancel]

    def stop() -> None:
        ways[-1]()

    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # `nohup` ignores it already
        loop.add_signal_handler(signal.SIGHUP, stop if os.isatty(0) else _overhear)
    with contextlib.suppress(asyncio.CancelledError):
        yield ways.append


def _overhear() -> None:
    log.info("server.hangup", ignored=True)


async def serve(settings: Settings) -> None:
    """Returns after SIGINT or SIGTERM, when everything is closed.

    Raises BackgroundTaskDied, as `run_until_stopped`.
    """
    with stoppable() as stop_by, listen(settings) as listening:
        async with running_services(settings) as services:
            server = configured(services)
            begin_serving(listening, settings, services.supervisor)
            stop_by(server.stop)
            await run_until_stopped(server, listening, services.supervisor)


async def run_until_stopped(
    server: Server, listening: socket.socket, supervisor: Supervisor
) -> None:
    """Raises BackgroundTaskDied, after it has drained, when one did: half a registry misleads its
    users, and whoever keeps the process alive starts it whole.
    """
    supervisor.when_failed = server.drain
    if supervisor.failed:
        server.drain()
    _forget_garbage()
    await server.serve(sockets=[listening])
    supervisor.require_all()


def begin_serving(listening: socket.socket, settings: Settings, supervisor: Supervisor) -> None:
    """What is done once for an address, however many processes answer on it."""
    scheme = "http" if settings.tls_certificate is None else "https"
    host, port = listening.getsockname()[:2]
    url = url_of(host, port, scheme)
    if not settings.authentication_required:
        log.warning("server.open", address=listening.getsockname()[0], authentication="off")
    if settings.dev_agent:
        supervisor.start("dev_agent", keep_dev_agent(url, settings.data_dir))
    _announce(url, settings)


def url_of(host: str, port: int, scheme: str) -> str:
    """Where this machine itself reaches what listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"{scheme}://[{reachable}]:{port}" if ":" in host else f"{scheme}://{reachable}:{port}"


def _announce(url: str, settings: Settings) -> None:
    click.echo(
        f"Node registry {VERSION}, {settings.env}\n"
        f"  Dashboard {url}/dashboard\n"
        f"  GraphQL   {url}/graphql\n"
        f"  GraphiQL  {url}/graphql in a browser\n"
        f"  Health    {url}/health\n"
        f"  Metrics   {url}/metrics"
    )
