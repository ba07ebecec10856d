"""The composition root: builds everything that the registry consists of, and owns its lifetime."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from db.core import rate_channel
from graph.api.schema import schema
from graph.auth.authentication import Authentication
from graph.auth.caller_limits import CallerLimits
from graph.auth.credential_verifier import CredentialVerifier
from graph.auth.jwt_verifier import create_jwt_verifier
from graph.auth.rate_sync import RateSync
from graph.auth.request_source import ForwardedMiddleware
from graph.core.open_database import open_database
from graph.core.settings import RESERVED_CONNECTIONS, ConfigurationError, Settings
from graph.execution import document_cache
from graph.execution.engine import Engine
from graph.live.background_tasks import open_background_tasks
from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_tail import HeartbeatTail
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.housekeeping import Housekeeping
from graph.live.node_snapshot import NodeSnapshot
from graph.live.rejection_log import RejectionLog
from graph.live.sweeper import Sweeper
from graph.services import Services
from graph.telemetry.metrics import Metrics
from graph.telemetry.peer_metrics import PeerMetrics
from graph.telemetry.spans import NoTracer, Tracer
from graph.transport.dashboard import STATIC, Assets, redirect_to_dashboard, show_dashboard
from graph.transport.http import GraphQLOverHTTP
from graph.transport.request_id import RequestIdMiddleware
from graph.transport.security_headers import SecurityHeadersMiddleware
from graph.transport.status_pages import StatusPages
from graph.transport.websocket import GraphQLOverWebSocket


@asynccontextmanager
async def open_tracer(settings: Settings) -> AsyncIterator[Tracer]:
    """Yield the tracer that sends spans where the settings say, or one that records none.

    OpenTelemetry is imported only where spans are sent.

    Raises: ConfigurationError: the extra `otel` is not installed.
    """
    if settings.otlp_endpoint is None:
        yield NoTracer()
        return
    try:
        from graph.tracing import OTLPTracer  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "NODE_REGISTRY_OTLP_ENDPOINT: needs the extra `otel`:"
            f" pip install 'dagi-node-registry[otel]' ({error})"
        ) from error
    tracer = OTLPTracer(settings.otlp_endpoint)
    try:
        yield tracer
    finally:
        await tracer.close()


@asynccontextmanager
async def open_services(
    settings: Settings, peer_metrics: PeerMetrics | None = None
) -> AsyncIterator[Services]:
    """Build all parts, start the background tasks, and close everything in reverse order.

    Raises: ConfigurationError, and the errors of `open_database`.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        tracer = await stack.enter_async_context(open_tracer(settings))
        tracer.trace_statements(database)
        metrics = Metrics()
        limits = CallerLimits(settings, metrics)
        credential_verifier = CredentialVerifier(
            database, await create_jwt_verifier(settings), check_seconds=settings.key_check_seconds
        )
        authentication = Authentication(settings, credential_verifier)
        rate_sync = RateSync(database, [*limits.shared_limiters, authentication.failed_logins])
        change_feed = ChangeFeed(
            database,
            check_seconds=settings.listen_check_seconds,
            max_lag=settings.subscriber_max_lag,
            handlers={rate_channel.CHANNEL: rate_sync.receive},
        )
        await change_feed.start()
        node_snapshot = NodeSnapshot(database, change_feed)
        housekeeping = Housekeeping(database, settings, metrics)
        await housekeeping.make_room()
        await housekeeping.make_day_partitions()
        # Callers cannot take the connections of heartbeats and the sweep.
        reserved = await stack.enter_async_context(
            database.open_separate_pool(RESERVED_CONNECTIONS)
        )
        tracer.trace_statements(reserved)
        sweeper = Sweeper(reserved, settings, metrics)
        heartbeats = HeartbeatWriter(reserved, sweeper, metrics, tracer, settings.to_node_limits())
        heartbeat_tail = HeartbeatTail(database, interval_seconds=settings.heartbeat_stream_seconds)
        await sweeper.sweep()
        rejections = RejectionLog(database)
        stack.push_async_callback(rejections.drain)
        background_tasks = await stack.enter_async_context(open_background_tasks())
        background_tasks.start("change_feed", change_feed.run)
        background_tasks.start("node_snapshot", node_snapshot.run)
        background_tasks.start("sweeper", sweeper.run)
        background_tasks.start("housekeeping", housekeeping.run)
        background_tasks.start("heartbeat_writer", heartbeats.run)
        background_tasks.start("heartbeat_tail", heartbeat_tail.run)
        background_tasks.start("credential_verifier", credential_verifier.run)
        background_tasks.start("rate_sync", rate_sync.run)
        yield Services(
            settings,
            authentication,
            database,
            change_feed,
            node_snapshot,
            sweeper,
            heartbeats,
            heartbeat_tail,
            limits,
            metrics,
            rejections,
            background_tasks,
            tracer,
            peer_metrics,
        )


def _add_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return the app with CORS for the allowed origins. No cookies: a page must have a token."""
    if not settings.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
    )


class _GraphQLDispatch:
    """Handles one path before Starlette's router, which would take a tenth of a heartbeat."""

    def __init__(self, path: str, handlers: Mapping[str, ASGIApp], fallback: ASGIApp) -> None:
        """`handlers` are the apps of the path, by the type of the scope."""
        self._path = path
        self._handlers = handlers
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._handlers.get(scope["type"]) if scope.get("path") == self._path else None
        await (app or self._fallback)(scope, receive, send)


def build_app(services: Services) -> ASGIApp:
    pages = StatusPages(services)
    engine = Engine(schema, services, document_cache.load_trusted_documents())
    graphql = services.tracer.trace_requests(GraphQLOverHTTP(engine, services))
    app = Starlette(
        routes=[
            Route("/", pages.show_index),
            Route("/health", pages.show_health),
            Route("/health/live", pages.show_liveness),
            Route("/metrics", pages.show_metrics),
            Route("/graphql", graphql),
            Route("/dashboard", show_dashboard),
            Route("/dashboard/", redirect_to_dashboard),
            Mount("/static", Assets(directory=STATIC)),
        ],
    )
    # Its redirects would repeat the host and the query of a request.
    app.router.redirect_slashes = False
    handlers: dict[str, ASGIApp] = {
        "http": graphql,
        "websocket": GraphQLOverWebSocket(engine, services),
    }
    graphql_first = _GraphQLDispatch("/graphql", handlers, app)
    with_headers = SecurityHeadersMiddleware(_add_cors(graphql_first, services.settings))
    trusted_proxies = services.settings.trusted_proxies
    return ForwardedMiddleware(RequestIdMiddleware(with_headers), trusted_proxies)
