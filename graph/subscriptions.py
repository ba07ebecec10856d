"""The subscriptions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import strawberry

from db import nodes, tables
from db.errors import NodeNotFound
from db.filters import EVERY_NODE
from graph import validation
from graph.context import Info
from graph.follow import Changed, Event, HoleFound, Passed, follow
from graph.heartbeat_feed import HeartbeatFeed
from graph.node import Node
from graph.queries import Filter
from graph.scalars import Revision
from graph.types import Heartbeat, StatusChange, field


@strawberry.type(
    description="A node's status changed. With node, the node as it stood when the event was sent;"
    " null once deregistered."
)
class NodeStatusChanged:
    change: StatusChange = field("The entry of the change log.")
    node: Node | None = field("The node; null once it was removed.")


@strawberry.type(
    description="Nothing that matches has happened up to this revision:"
    " a client that reconnects may resume from it."
)
class Bookmark:
    revision: Revision = field("How far the change log was read.")


@strawberry.type(
    description="The stream cannot go on without a hole, because the log was trimmed or this client"
    " was too slow. Read nodes again, then resume from revision."
)
class ResyncRequired:
    revision: Revision = field("Where to resume once the nodes were read again.")
    reason: str = field("What happened.")


NodeStatusEvent = Annotated[
    NodeStatusChanged | Bookmark | ResyncRequired,
    strawberry.union("NodeStatusEvent", description="What a stream of status changes says."),
]


@strawberry.type(description="What may be followed.")
class Subscription:
    @strawberry.subscription(
        description="Every status change of the nodes that match, in order, none twice."
    )
    async def node_status_changes(
        self,
        info: Info,
        filter: Filter = None,  # noqa: A002  # the contract's name
        after: Annotated[
            Revision | None,
            strawberry.argument(description="Resume behind that revision. Absent: from now on."),
        ] = None,
    ) -> AsyncGenerator[NodeStatusEvent, None]:
        context = info.context
        node_filter = EVERY_NODE if filter is None else filter.checked()
        events = await follow(
            context.feed,
            context.database,
            node_filter,
            after=after,
            bookmark_seconds=context.settings.bookmark_interval_seconds,
        )
        return _shown(events)

    @strawberry.subscription(
        description="Heartbeats as they arrive, for a live chart; not resumable. A reader that is"
        " too slow misses the oldest. NODE_NOT_FOUND for a node that is not registered."
    )
    async def heartbeats(
        self,
        info: Info,
        node_id: Annotated[str, strawberry.argument(description="The node to follow.")],
    ) -> AsyncGenerator[Heartbeat, None]:
        context = info.context
        async with context.database.read() as session:
            node = await nodes.find(session, validation.searched("nodeId", node_id))
        if node is None:
            raise NodeNotFound(node_id)
        return _arriving(context.heartbeat_feed, node)


async def _arriving(feed: HeartbeatFeed, node: tables.Node) -> AsyncGenerator[Heartbeat, None]:
    with feed.subscribe(node.id, node.last_heartbeat_id or 0) as subscriber:
        async for heartbeat in subscriber.heartbeats():
            yield Heartbeat.of(heartbeat, node.node_id)


async def _shown(events: AsyncGenerator[Event, None]) -> AsyncGenerator[NodeStatusEvent, None]:
    async with aclosing(events):
        async for event in events:
            yield _as_type(event)


def _as_type(event: Event) -> NodeStatusChanged | Bookmark | ResyncRequired:
    match event:
        case Changed(change, node):
            return NodeStatusChanged(
                change=StatusChange.of(change), node=None if node is None else Node.of(node)
            )
        case Passed(revision):
            return Bookmark(revision=Revision(revision))
        case HoleFound(revision, reason):
            return ResyncRequired(revision=Revision(revision), reason=reason)
