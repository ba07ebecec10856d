"""What a resolver has at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import strawberry

from db.database import Database
from db.identity import Caller
from graph.heartbeats import HeartbeatWriter
from graph.limits import Limits
from graph.liveness import Pacemaker
from graph.loader import NodeLoader
from graph.metrics import Metrics
from graph.settings import Settings

if TYPE_CHECKING:  # these make or extend objects of the API, whose resolvers take this context
    from graph.feed import ChangeFeed
    from graph.fleet import Fleet
    from graph.heartbeat_feed import HeartbeatFeed
    from graph.refusals import Refusals


@dataclass(frozen=True, slots=True)
class Context:
    """One for each operation. `caller` is who asks."""

    settings: Settings
    database: Database
    feed: ChangeFeed
    fleet: Fleet
    pacemaker: Pacemaker
    heartbeats: HeartbeatWriter
    heartbeat_feed: HeartbeatFeed
    limits: Limits
    metrics: Metrics
    refusals: Refusals
    loader: NodeLoader
    caller: Caller


Info = strawberry.Info[Context, None]
