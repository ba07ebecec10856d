"""The address that the registry serves on, and what is done once for it."""

import socket

import click
import structlog

from graph.core.settings import ConfigurationError, Settings, is_loopback
from graph.core.version import VERSION
from graph.live.background_tasks import BackgroundTasks
from graph.server.dev_agent import run_dev_agent

log = structlog.get_logger()

_BACKLOG = 2048


def require_safe_access(settings: Settings) -> None:
    """Raises ConfigurationError where anybody else could do anything, and nobody has said so."""
    if settings.is_authentication_required:
        return
    if settings.env == "production":
        raise ConfigurationError("NODE_REGISTRY_AUTH: production requires authentication")
    if not is_loopback(settings.http_host) and not settings.let_anyone_do_anything:
        raise ConfigurationError(
            f"NODE_REGISTRY_AUTH: without authentication {settings.http_host} would be open to all"
            " who can reach it; NODE_REGISTRY_LET_ANYONE_DO_ANYTHING=true allows it"
        )


def listen(settings: Settings, *, reuse_port: bool = False) -> socket.socket:
    """Raises OSError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    address = (settings.http_host, settings.http_port)
    listener = socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=reuse_port)
    # What is accepted inherits it: asyncio itself misses such sockets, and every answer to a
    # connection that is kept waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A machine that vanished acknowledges nothing; an event stream would tell it for long.
        seconds = 2 * settings.keepalive_seconds
        if settings.tls_certificate is not None:
            # What a reader does not take waits behind TLS, where
            # `graph.server.connection_guards` does not see it.
            seconds = min(seconds, settings.stalled_reader_seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))
    return listener


def finish_startup(
    listener: socket.socket, settings: Settings, background_tasks: BackgroundTasks
) -> None:
    """What is done once for an address, however many processes answer on it."""
    scheme = "http" if settings.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    url = build_url(host, port, scheme)
    if not settings.is_authentication_required:
        log.warning("server.open", address=host, authentication="off")
    if settings.dev_agent:
        background_tasks.start("dev_agent", run_dev_agent(url, settings.data_dir))
    _print_addresses(url, settings)


def build_url(host: str, port: int, scheme: str) -> str:
    """Where this machine itself reaches what listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"{scheme}://[{reachable}]:{port}" if ":" in host else f"{scheme}://{reachable}:{port}"


def _print_addresses(url: str, settings: Settings) -> None:
    click.echo(
        f"Node registry {VERSION}, {settings.env}\n"
        f"  Dashboard {url}/dashboard\n"
        f"  GraphQL   {url}/graphql\n"
        f"  GraphiQL  {url}/graphql in a browser\n"
        f"  Health    {url}/health\n"
        f"  Metrics   {url}/metrics"
    )
