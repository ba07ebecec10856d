"""The long-lived parts of the registry that requests use; `graph.app` builds and closes them."""

from dataclasses import dataclass

from db.core.database import Database
from graph.auth.authentication import Authentication
from graph.auth.caller_limits import CallerLimits
from graph.core.settings import Settings
from graph.live.background_tasks import BackgroundTasks
from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_tail import HeartbeatTail
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.node_snapshot import NodeSnapshot
from graph.live.rejection_log import RejectionLog
from graph.live.sweeper import Sweeper
from graph.telemetry.metrics import Metrics
from graph.telemetry.peer_metrics import PeerMetrics
from graph.telemetry.spans import Tracer


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one app."""

    settings: Settings
    authentication: Authentication
    database: Database
    change_feed: ChangeFeed
    node_snapshot: NodeSnapshot
    sweeper: Sweeper
    heartbeat_writer: HeartbeatWriter
    heartbeat_tail: HeartbeatTail
    caller_limits: CallerLimits
    metrics: Metrics
    rejections: RejectionLog
    background_tasks: BackgroundTasks
    tracer: Tracer
    peer_metrics: PeerMetrics | None = None
