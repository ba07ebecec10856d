"""The registry without a database: each use of it is answered with UNAVAILABLE, at once."""

from pathlib import Path

from db.core.database import Database
from graph.auth.authentication import Authentication
from graph.auth.caller_limits import CallerLimits
from graph.auth.credential_verifier import CredentialVerifier
from graph.core.settings import Settings
from graph.live.background_tasks import BackgroundTasks
from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_tail import HeartbeatTail
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.node_snapshot import NodeSnapshot
from graph.live.rejection_log import RejectionLog
from graph.live.sweeper import Sweeper
from graph.services import Services
from graph.telemetry.metrics import Metrics
from graph.telemetry.spans import NoTracer

_NOWHERE = "postgresql://nobody@/none?host=/nonexistent"
_UNLIMITED = 1e9


def make_offline_services() -> Services:
    """Return services without background tasks, and without limits of rates, which take time."""
    settings = Settings(
        data_dir=Path("/nonexistent"),
        graphiql=False,
        requests_per_second_per_address=_UNLIMITED,
        failed_logins_per_minute=_UNLIMITED,
    )
    database, metrics, tracer = Database(_NOWHERE), Metrics(), NoTracer()
    verifier = CredentialVerifier(database, None, check_seconds=settings.key_check_seconds)
    change_feed = ChangeFeed(
        database, check_seconds=settings.listen_check_seconds, max_lag=settings.subscriber_max_lag
    )
    sweeper = Sweeper(database, settings, metrics)
    return Services(
        settings=settings,
        authentication=Authentication(settings, verifier),
        database=database,
        change_feed=change_feed,
        node_snapshot=NodeSnapshot(database, change_feed),
        sweeper=sweeper,
        heartbeat_writer=HeartbeatWriter(database, sweeper, metrics, tracer),
        heartbeat_tail=HeartbeatTail(database, interval_seconds=settings.heartbeat_stream_seconds),
        caller_limits=CallerLimits(settings, metrics),
        metrics=metrics,
        rejections=RejectionLog(database),
        background_tasks=BackgroundTasks(),
        tracer=tracer,
    )
