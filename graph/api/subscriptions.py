"""The subscriptions."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated

import strawberry

from db.core import tables
from db.core.errors import NodeNotFound
from db.registry import nodes
from db.registry.node_filter import EVERY_NODE
from db.routing.matching import NO_REQUIREMENTS
from graph.api.context import Info
from graph.api.events import AvailableNodesEvent, NodeStatusEvent
from graph.api.queries import Filter, Require
from graph.api.scalars import Revision
from graph.api.types import Heartbeat
from graph.auth.permissions import EVERYBODY, READERS, READERS_AND_OWN_AGENT, allowed, require_own
from graph.core import validation
from graph.core.event_batches import Batched
from graph.live.candidate_watch import follow_available
from graph.live.change_stream import follow
from graph.live.heartbeat_pace import HeartbeatPace
from graph.live.heartbeat_tail import HeartbeatFeed


@strawberry.type(description="What may be followed.")
class Subscription:
    @strawberry.subscription(
        **allowed(READERS, "Every status change of the nodes that match, in order, none twice.")
    )
    async def node_status_changes(
        self,
        info: Info,
        filter: Filter = None,  # noqa: A002  # the contract's name
        after: Annotated[
            Revision | None,
            strawberry.argument(description="Resume behind that revision. Absent: from now on."),
        ] = None,
    ) -> AsyncIterator[NodeStatusEvent]:
        context = info.context
        node_filter = EVERY_NODE if filter is None else filter.checked()
        return Batched(
            await follow(
                context.feed,
                context.database,
                node_filter,
                after=after,
                bookmark_seconds=context.settings.bookmark_interval_seconds,
            )
        )

    @strawberry.subscription(
        **allowed(
            READERS,
            "The nodes a router may use, kept current: the set, then what enters and leaves"
            " it. A change of status is told at once, one of capabilities, labels or metrics within"
            " a second.",
        )
    )
    async def available_nodes_changes(
        self, info: Info, require: Require = None
    ) -> AsyncIterator[AvailableNodesEvent]:
        required = NO_REQUIREMENTS if require is None else require.checked()
        return Batched(follow_available(info.context.fleet.watching(required)))

    @strawberry.subscription(
        **allowed(
            READERS_AND_OWN_AGENT,
            "Heartbeats as they arrive, for a live chart; not resumable. A reader that is"
            " too slow misses the oldest. NODE_NOT_FOUND for a node that is not registered.",
        )
    )
    async def heartbeats(
        self,
        info: Info,
        node_id: Annotated[str, strawberry.argument(description="The node to follow.")],
    ) -> AsyncIterator[Heartbeat]:
        context = info.context
        searched = validation.searched("nodeId", node_id)
        require_own(context.caller, searched)
        async with context.database.read() as session:
            node = await nodes.find(session, searched)
        if node is None:
            raise NodeNotFound(node_id)
        return Batched(_arriving(context.heartbeat_feed, node))

    @strawberry.subscription(
        **allowed(
            EVERYBODY,
            "The pace of heartbeats, for agents: as it is, then whenever it has changed by half. It"
            " tells them between two heartbeats what their replies would have told them later.",
        )
    )
    async def heartbeat_pace(self, info: Info) -> AsyncIterator[HeartbeatPace]:
        return Batched(info.context.pacemaker.pace.follow(), alike=True)


async def _arriving(
    feed: HeartbeatFeed, node: tables.Node
) -> AsyncGenerator[Sequence[Heartbeat], None]:
    with feed.subscribe(node.id, node.last_heartbeat_id or 0) as subscriber:
        async for heartbeats in subscriber.heartbeats():
            yield [Heartbeat.of(heartbeat, node.node_id) for heartbeat in heartbeats]
