"""What the streams of the API say: one object for each event, whoever is told of it."""

from typing import Annotated, Any, Self

import strawberry
from sqlalchemy import Row

from db.registry.status_changes import LoggedChange
from graph.api.node import Node
from graph.api.scalars import Revision
from graph.api.types import StatusChange, field


@strawberry.type(
    description="A node's status changed. With node, the node as it stood when the event was sent;"
    " null once deregistered."
)
class NodeStatusChanged:
    change: StatusChange = field("The entry of the change log.")
    node: Node | None = field("The node; null once it was removed.")

    @classmethod
    def of(cls, change: LoggedChange, node: Row[Any] | None) -> Self:
        return cls(
            change=StatusChange.of(change),
            node=None if node is None else Node.of(node),
        )


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
