"""The composition root: builds everything that the registry consists of, and owns its lifetime."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from db.core import rate_channel
from db.core.database import Database
from graph.api.audited_field import Refusals
from graph.api.schema import schema
from graph.auth.authentication import Authentication
from graph.auth.caller_limits import Limits
from graph.auth.credential_cache import Keyring
from graph.auth.jwt_verifier import jwt_verifier
from graph.auth.rate_sync import SharedRates
from graph.core.open_database import current_database
from graph.core.settings import VITAL_CONNECTIONS, ConfigurationError, Settings
from graph.execution import document_cache
from graph.execution.engine import Operations
from graph.live.background_tasks import supervised
from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_tail import HeartbeatFeed
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.housekeeping import Upkeep
from graph.live.node_snapshot import Fleet
from graph.live.sweeper import Pacemaker
from graph.services import Services
from graph.telemetry.logs import RequestIds
from graph.telemetry.metrics import Metrics
from graph.telemetry.peer_metrics import Siblings
from graph.transport.dashboard import STATIC, Assets, dashboard
from graph.transport.http import GraphQLOverHTTP
from graph.transport.status_pages import Pages
from graph.transport.websocket import GraphQLOverWebSocket

if TYPE_CHECKING:
    from graph.tracing import Tracing


@asynccontextmanager
async def traces(settings: Settings, database: Database) -> AsyncIterator["Tracing | None"]:
    """None unless they are sent anywhere: then what they need is not even imported.

    Raises ConfigurationError.
    """
    if settings.otlp_endpoint is None:
        yield None
        return
    try:
        from graph.tracing import Tracing  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "NODE_REGISTRY_OTLP_ENDPOINT: needs the extra `otel`:"
            f" pip install 'dagi-node-registry[otel]' ({error})"
        ) from error
    tracing = Tracing(settings.otlp_endpoint, database)
    try:
        yield tracing
    finally:
        await tracing.close()


@asynccontextmanager
async def running_services(
    settings: Settings, siblings: Siblings | None = None
) -> AsyncIterator[Services]:
    """Raises what `current_database` raises, before it serves."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(current_database(settings))
        tracing = await stack.enter_async_context(traces(settings, database))
        metrics = Metrics()
        limits = Limits(settings, metrics)
        keyring = Keyring(
            database, await jwt_verifier(settings), check_seconds=settings.key_check_seconds
        )
        authentication = Authentication(settings, keyring)
        shared_rates = SharedRates(database, [*limits.rates, authentication.failures])
        feed = ChangeFeed(
            database,
            check_seconds=settings.listen_check_seconds,
            max_lag=settings.subscriber_max_lag,
            others={rate_channel.CHANNEL: shared_rates.hear},
        )
        await feed.start()
        fleet = Fleet(database, feed)
        upkeep = Upkeep(database, settings, metrics)
        await upkeep.make_days()
        # Whatever callers ask, heartbeats are written and nodes are looked after.
        vital = await stack.enter_async_context(database.beside(VITAL_CONNECTIONS))
        pacemaker = Pacemaker(vital, settings, metrics)
        given = vital, pacemaker, metrics
        heartbeats = HeartbeatWriter(*given) if tracing is None else tracing.heartbeats(*given)
        heartbeat_feed = HeartbeatFeed(database, interval_seconds=settings.heartbeat_stream_seconds)
        await pacemaker.sweep()
        refusals = Refusals(database)
        stack.push_async_callback(refusals.drain)
        supervisor = await stack.enter_async_context(supervised())
        supervisor.start("feed", feed.run())
        supervisor.start("fleet", fleet.run())
        supervisor.start("liveness", pacemaker.run())
        supervisor.start("upkeep", upkeep.run())
        supervisor.start("heartbeats", heartbeats.run())
        supervisor.start("heartbeat_feed", heartbeat_feed.run())
        supervisor.start("keys", keyring.run())
        supervisor.start("rates", shared_rates.run())
        yield Services(
            settings,
            authentication,
            database,
            feed,
            fleet,
            pacemaker,
            heartbeats,
            heartbeat_feed,
            limits,
            metrics,
            refusals,
            supervisor,
            tracing,
            siblings,
        )


def _cross_origin(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Off unless pages of other origins are named. No cookies: a page has to know a key."""
    if not settings.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
    )


class _GraphQLFirst:
    """Past Starlette's router and what it wraps around each message: for a heartbeat that would be
    a tenth of its time.
    """

    def __init__(self, path: str, ways: Mapping[str, ASGIApp], others: ASGIApp) -> None:
        """`ways` there by the type of the scope."""
        self._path = path
        self._ways = ways
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._ways.get(scope["type"]) if scope.get("path") == self._path else None
        await (app or self._others)(scope, receive, send)


def build_app(services: Services) -> ASGIApp:
    pages = Pages(services)
    given = schema, services, document_cache.trusted()
    tracing = services.tracing
    operations = Operations(*given) if tracing is None else tracing.operations(*given)
    graphql: ASGIApp = GraphQLOverHTTP(operations, services)
    if tracing is not None:
        graphql = tracing.requests(graphql)
    app = Starlette(
        routes=[
            Route("/", pages.index),
            Route("/health", pages.health),
            Route("/health/live", pages.live),
            Route("/metrics", pages.metrics),
            Route("/graphql", graphql),
            Route("/dashboard", dashboard),
            Mount("/static", Assets(directory=STATIC)),
        ],
    )
    ways: dict[str, ASGIApp] = {
        "http": graphql,
        "websocket": GraphQLOverWebSocket(operations, services),
    }
    first = _GraphQLFirst("/graphql", ways, app)
    return RequestIds(_cross_origin(first, services.settings))
