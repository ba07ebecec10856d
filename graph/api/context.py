"""What a resolver has at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import strawberry

from db.core.database import Database
from db.core.identity import Caller
from graph.api.node_loader import NodeLoader
from graph.auth.caller_limits import Limits
from graph.core.settings import Settings
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.sweeper import Pacemaker
from graph.telemetry.metrics import Metrics

if TYPE_CHECKING:  # these make or extend objects of the API, whose resolvers take this context
    from graph.api.audited_field import Refusals
    from graph.live.change_feed import ChangeFeed
    from graph.live.heartbeat_tail import HeartbeatFeed
    from graph.live.node_snapshot import Fleet


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
