"""The address that the registry serves on, and the steps taken once per address."""

import socket
from functools import partial

import structlog

from graph.core.settings import ConfigurationError, Settings, is_loopback
from graph.core.terminal import echo
from graph.core.version import VERSION
from graph.live.background_tasks import BackgroundTasks
from graph.server.dev_agent import run_dev_agent

log = structlog.get_logger()

_BACKLOG = 2048
_RECEIVE_BUFFER_BYTES = 32 * 1024


def require_safe_access(settings: Settings) -> None:
    """Check that nobody else gets full access unless the settings allow it explicitly.

    Raises: ConfigurationError: authentication is off in production or beyond this machine.
    """
    if settings.is_authentication_required:
        return
    if settings.env == "production":
        raise ConfigurationError("NODE_REGISTRY_AUTH: production requires authentication")
    if not is_loopback(settings.http_host) and not settings.let_anyone_do_anything:
        raise ConfigurationError(
            f"NODE_REGISTRY_AUTH: without authentication, anyone who can reach {settings.http_host}"
            " would have full access; NODE_REGISTRY_LET_ANYONE_DO_ANYTHING=true allows it"
        )


def listen(settings: Settings, *, reuse_port: bool = False) -> socket.socket:
    """Return a listening socket on the configured address.

    Raises: OSError: the address is in use or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    address = (settings.http_host, settings.http_port)
    listener = socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=reuse_port)
    # Accepted connections inherit this option. asyncio does not set it on them, and each response
    # on a kept-alive connection would wait 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Also inherited. All that the system has received is read at once, and held until it is parsed.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A vanished machine acknowledges nothing, and its event stream would stay open for long.
        seconds = 2 * settings.keepalive_seconds
        if settings.tls_certificate is not None:
            # Unread data waits behind TLS, where `graph.server.connection_guards` cannot see it.
            seconds = min(seconds, settings.stalled_reader_seconds)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * seconds))
    return listener


def finish_startup(
    listener: socket.socket, settings: Settings, background_tasks: BackgroundTasks
) -> None:
    """Start the development agent and print the addresses, once for all workers of an address."""
    scheme = "http" if settings.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    url = build_url(host, port, scheme)
    if not settings.is_authentication_required:
        log.warning("authentication.disabled", address=host)
    if settings.dev_agent:
        run = partial(run_dev_agent, url, settings.data_dir)
        background_tasks.start("dev_agent", run, is_vital=False)
    _print_addresses(url, settings)


def build_url(host: str, port: int, scheme: str) -> str:
    """Return the URL at which this machine itself reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"{scheme}://[{reachable}]:{port}" if ":" in host else f"{scheme}://{reachable}:{port}"


def _print_addresses(url: str, settings: Settings) -> None:
    echo(
        f"Node registry {VERSION}, {settings.env}\n"
        f"  Dashboard {url}/dashboard\n"
        f"  GraphQL   {url}/graphql\n"
        f"  GraphiQL  {url}/graphql in a browser\n"
        f"  Health    {url}/health\n"
        f"  Metrics   {url}/metrics"
    )
