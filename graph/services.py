"""What the app owns for as long as it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from db.core.database import Database
from db.core.identity import Caller
from graph.api.audited_field import Refusals
from graph.api.context import Context
from graph.api.node_loader import NodeLoader
from graph.auth.authentication import Authentication
from graph.auth.caller_limits import Limits
from graph.core.settings import Settings
from graph.live.background_tasks import Supervisor
from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_tail import HeartbeatFeed
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.node_snapshot import Fleet
from graph.live.sweeper import Pacemaker
from graph.telemetry.metrics import Metrics
from graph.telemetry.peer_metrics import Siblings

if TYPE_CHECKING:
    from graph.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    authentication: Authentication
    database: Database
    feed: ChangeFeed
    fleet: Fleet
    pacemaker: Pacemaker
    heartbeats: HeartbeatWriter
    heartbeat_feed: HeartbeatFeed
    limits: Limits
    metrics: Metrics
    refusals: Refusals
    supervisor: Supervisor
    tracing: "Tracing | None" = None
    siblings: Siblings | None = None

    def context(self, caller: Caller) -> Context:
        """For one operation."""
        return Context(
            settings=self.settings,
            database=self.database,
            feed=self.feed,
            fleet=self.fleet,
            pacemaker=self.pacemaker,
            heartbeats=self.heartbeats,
            heartbeat_feed=self.heartbeat_feed,
            limits=self.limits,
            metrics=self.metrics,
            refusals=self.refusals,
            loader=NodeLoader(self.database),
            caller=caller,
        )
