"""The events of subscriptions as API objects."""

from typing import Annotated

import strawberry

from graph.api.fields import field
from graph.api.node import Node
from graph.api.scalars import Revision
from graph.api.types import StatusChange
from graph.live import stream_events


@strawberry.type(
    description="A status change of a node, with the node as it was when the event was sent."
)
class NodeStatusChanged:
    change: StatusChange = field("The entry of the change log.")
    node: Node | None = field("The node; null if it has been deregistered.")


@strawberry.type(
    description="No matching event has occurred up to this revision. A client that reconnects may"
    " resume from it."
)
class Bookmark:
    revision: Revision = field("The revision up to which the change log was read.")


@strawberry.type(
    description="The stream cannot continue without a gap, because the log was trimmed or this"
    " client was too slow. Read the nodes again, then resume from revision."
)
class ResyncRequired:
    revision: Revision = field(
        "The revision from which to resume after the nodes have been read again."
    )
    reason: str = field("Why the stream cannot continue.")


NodeStatusEvent = Annotated[
    NodeStatusChanged | Bookmark | ResyncRequired,
    strawberry.union("NodeStatusEvent", description="An event of a stream of status changes."),
]


@strawberry.type(
    description="The complete set of candidates. Sent first, and again whenever changes to the"
    " set may have been missed."
)
class AvailableNodesSnapshot:
    revision: Revision = field("The revision of the change log up to which the set is current.")
    nodes: list[Node] = field("The nodes that meet the requirements, by node id.")


@strawberry.type(description="A node that now meets the requirements.")
class NodeBecameAvailable:
    revision: Revision = field("The revision of the change log up to which the event is current.")
    node: Node = field("The node.")


@strawberry.type(description="A node that no longer meets the requirements.")
class NodeBecameUnavailable:
    revision: Revision = field("The revision of the change log up to which the event is current.")
    node_id: str = field("The id of the node.")
    reasons: list[str] = field("One reason for each requirement that the node does not meet.")


AvailableNodesEvent = Annotated[
    AvailableNodesSnapshot | NodeBecameAvailable | NodeBecameUnavailable,
    strawberry.union("AvailableNodesEvent", description="An event of a stream of candidates."),
]


@strawberry.type(
    description="The current heartbeat interval. A node whose next heartbeat is due later than"
    " one interval from now sends it at a random moment within the interval, because"
    " all nodes receive this event at once. A node whose next heartbeat is due earlier"
    " keeps its schedule."
)
class HeartbeatPace:
    interval_seconds: float = field("The interval in seconds, without jitter.")


def show_status_event(
    event: stream_events.StatusEvent,
) -> NodeStatusChanged | Bookmark | ResyncRequired:
    """Return the API object for an event of `nodeStatusChanges`."""
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
    """Return the API object for an event of `availableNodesChanges`."""
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
    """Return the API object for an event of `heartbeatPace`."""
    return HeartbeatPace(interval_seconds=event.interval_seconds)
