"""The events of subscriptions as the API shows them."""

from typing import Annotated

import strawberry

from graph.api.fields import field
from graph.api.node import Node
from graph.api.scalars import Revision
from graph.api.types import StatusChange
from graph.live import stream_events


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


@strawberry.type(
    description="The set as it stands; sent first, and again whenever deltas could have been"
    " missed."
)
class AvailableNodesSnapshot:
    revision: Revision = field("The change log had come so far.")
    nodes: list[Node] = field("The nodes that meet the requirements, by node id.")


@strawberry.type(description="A node that meets the requirements now.")
class NodeBecameAvailable:
    revision: Revision = field("The change log had come so far.")
    node: Node = field("The node.")


@strawberry.type(description="A node that does not meet the requirements any more.")
class NodeBecameUnavailable:
    revision: Revision = field("The change log had come so far.")
    node_id: str = field("The node.")
    reasons: list[str] = field("One line for each requirement that it does not meet.")


AvailableNodesEvent = Annotated[
    AvailableNodesSnapshot | NodeBecameAvailable | NodeBecameUnavailable,
    strawberry.union(
        "AvailableNodesEvent", description="What a stream of the nodes that may be used says."
    ),
]


@strawberry.type(
    description="The interval that replies promise now. A node whose next heartbeat is due later"
    " than that from now sends it earlier: at a random moment within the interval, because all"
    " nodes are told at once. One that is due earlier stays due."
)
class HeartbeatPace:
    interval_seconds: float = field("The pace of the fleet, without jitter.")


def show_status_event(
    event: stream_events.StatusEvent,
) -> NodeStatusChanged | Bookmark | ResyncRequired:
    """Return the API object of an event of `nodeStatusChanges`."""
    match event:
        case stream_events.StatusChanged(change=change, node=node):
            return NodeStatusChanged(
                change=StatusChange.from_change(change),
                node=None if node is None else Node.from_row(node),
            )
        case stream_events.Bookmark(revision=revision):
            return Bookmark(revision=Revision(revision))
        case stream_events.ResyncRequired(revision=revision, reason=reason):
            return ResyncRequired(revision=Revision(revision), reason=reason)


def show_candidate_event(
    event: stream_events.CandidateEvent,
) -> AvailableNodesSnapshot | NodeBecameAvailable | NodeBecameUnavailable:
    """Return the API object of an event of `availableNodesChanges`."""
    revision = Revision(event.revision)
    match event:
        case stream_events.CandidatesSnapshot(nodes=nodes):
            return AvailableNodesSnapshot(
                revision=revision, nodes=[Node.from_row(node) for node in nodes]
            )
        case stream_events.CandidateEntered(node=node):
            return NodeBecameAvailable(revision=revision, node=Node.from_row(node))
        case stream_events.CandidateLeft(node_id=node_id, reasons=reasons):
            return NodeBecameUnavailable(revision=revision, node_id=node_id, reasons=list(reasons))


def show_pace(event: stream_events.PaceChanged) -> HeartbeatPace:
    """Return the API object of an event of `heartbeatPace`."""
    return HeartbeatPace(interval_seconds=event.interval_seconds)
