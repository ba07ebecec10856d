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
from graph.api.events import (
    AvailableNodesEvent,
    HeartbeatPace,
    NodeStatusEvent,
    show_candidate_event,
    show_pace,
    show_status_event,
)
from graph.api.field_declarations import declare
from graph.api.queries import FilterArgument, RequireArgument
from graph.api.scalars import Revision
from graph.api.types import Heartbeat
from graph.auth.permissions import EVERYBODY, READERS, READERS_AND_OWN_AGENT, require_own_node
from graph.core import validation
from graph.core.event_batches import EventBatches
from graph.live.candidate_watch import follow_candidates
from graph.live.change_stream import follow_changes
from graph.live.heartbeat_tail import HeartbeatTail


@strawberry.type(description="The subscriptions that follow changes of the registry.")
class Subscription:
    @strawberry.subscription(
        **declare(
            READERS,
            "All status changes of the nodes that the filter selects, in order and without"
            " repetition.",
        )
    )
    async def node_status_changes(
        self,
        info: Info,
        filter: FilterArgument = None,
        after: Annotated[
            Revision | None,
            strawberry.argument(
                description="The revision after which to resume. If absent, the stream begins now."
            ),
        ] = None,
    ) -> AsyncIterator[NodeStatusEvent]:
        context = info.context
        node_filter = EVERY_NODE if filter is None else filter.to_filter()
        return EventBatches(
            await follow_changes(
                context.services.change_feed,
                context.services.database,
                node_filter,
                after=after,
                bookmark_seconds=context.services.settings.bookmark_interval_seconds,
            ),
            show_status_event,
        )

    @strawberry.subscription(
        **declare(
            READERS,
            "The nodes that a router may use: the complete set first, then each node that enters"
            " or leaves it. A status change is sent at once, a change of capabilities, labels or"
            " metrics within a second.",
        )
    )
    async def available_nodes_changes(
        self, info: Info, require: RequireArgument = None
    ) -> AsyncIterator[AvailableNodesEvent]:
        requirements = NO_REQUIREMENTS if require is None else require.to_requirements()
        return EventBatches(
            follow_candidates(info.context.services.node_snapshot.open_watch(requirements)),
            show_candidate_event,
        )

    @strawberry.subscription(
        **declare(
            READERS_AND_OWN_AGENT,
            "The heartbeats of a node as they arrive, for a live chart. The stream cannot be"
            " resumed. A reader that is too slow misses the oldest heartbeats. NODE_NOT_FOUND if"
            " the node is not registered.",
        )
    )
    async def heartbeats(
        self,
        info: Info,
        node_id: Annotated[str, strawberry.argument(description="The id of the node.")],
    ) -> AsyncIterator[Heartbeat]:
        context = info.context
        checked_id = validation.check_search_value("nodeId", node_id)
        require_own_node(context.caller, checked_id)
        async with context.services.database.read() as session:
            node = await nodes.find_node(session, checked_id)
        if node is None:
            raise NodeNotFound(node_id)
        return EventBatches(
            _follow_heartbeats(context.services.heartbeat_tail, node),
            lambda heartbeat: Heartbeat.from_row(heartbeat, node.node_id),
        )

    @strawberry.subscription(
        **declare(
            EVERYBODY,
            "The heartbeat interval, for agents: the current value, then each change by a"
            " factor of 1.5 or more. It reaches agents between two heartbeats, earlier than the"
            " reply to the next one.",
        )
    )
    async def heartbeat_pace(self, info: Info) -> AsyncIterator[HeartbeatPace]:
        return EventBatches(
            info.context.services.sweeper.pace.follow(), show_pace, same_for_all=True
        )


async def _follow_heartbeats(
    tail: HeartbeatTail, node: tables.Node
) -> AsyncGenerator[Sequence[tables.Heartbeat], None]:
    with tail.subscribe(node.id, node.last_heartbeat_id or 0) as subscriber:
        async for batch in subscriber.follow_heartbeats():
            yield batch
