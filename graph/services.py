"""What the app owns for as long as it runs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from db.database import Database
from db.identity import Caller
from graph.authentication import Authentication
from graph.context import Context
from graph.feed import ChangeFeed
from graph.fleet import Fleet
from graph.heartbeat_feed import HeartbeatFeed
from graph.heartbeats import HeartbeatWriter
from graph.limits import Limits
from graph.liveness import Pacemaker
from graph.loader import NodeLoader
from graph.metrics import Metrics
from graph.refusals import Refusals
from graph.settings import Settings
from graph.siblings import Siblings
from graph.supervisor import Supervisor

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
