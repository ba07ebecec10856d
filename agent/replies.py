"""The registry's replies as the agent reads them, validated before it acts on them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from agent.errors import RegistryUnavailableError
from agent.identity import is_node_id
from agent.settings import Token

MIN_INTERVAL_SECONDS = 0.05
MAX_INTERVAL_SECONDS = 86_400.0

Interval = Annotated[
    float, Field(ge=MIN_INTERVAL_SECONDS, le=MAX_INTERVAL_SECONDS, allow_inf_nan=False)
]
Revision = Annotated[int, Field(ge=0)]
ReplyT = TypeVar("ReplyT", bound=BaseModel)


def parse_reply(data: object, reply_type: type[ReplyT]) -> ReplyT:
    """Return the `data` of a GraphQL response as `reply_type`.

    Raises: RegistryUnavailableError: the data does not match the schema.
    """
    try:
        return reply_type.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RegistryUnavailableError(
            f"the answer does not match the schema: {field}: {first['msg']}"
        ) from None


def _check_node_id(node_id: str) -> str:
    if not is_node_id(node_id):
        raise ValueError("not a node id")
    return node_id


class Reply(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Node(Reply):
    node_id: Annotated[str, AfterValidator(_check_node_id)]
    name: str
    role: str
    type: str
    labels: list[str]
    hostname: str | None
    ip_address: str | None
    local_ip: str | None
    status: str
    last_heartbeat: AwareDatetime | None


class NodeWithReason(Node):
    status_reason: str
    status_since: AwareDatetime


class RegisterNodePayload(Reply):
    """`key` is the node token, which a registration with an enrolment token brings."""

    node: Node
    created: bool
    next_heartbeat_in_seconds: Interval
    key: Token | None = None
    key_expires_at: AwareDatetime | None = None


class RotateNodeKeyPayload(Reply):
    key: Token
    key_expires_at: AwareDatetime | None


class RotateNodeKeyData(Reply):
    rotate_node_key: RotateNodeKeyPayload


class RecordHeartbeatPayload(Reply):
    node_id: str
    status: str
    received_at: AwareDatetime
    next_heartbeat_in_seconds: Interval


class RegisterNodeData(Reply):
    register_node: RegisterNodePayload


class RecordHeartbeatData(Reply):
    record_heartbeat: RecordHeartbeatPayload


class HeartbeatPace(Reply):
    interval_seconds: Interval


class HeartbeatPaceData(Reply):
    heartbeat_pace: HeartbeatPace


class NodeStatusData(Reply):
    node: NodeWithReason | None


class StatusChange(Reply):
    revision: Revision
    node_id: str
    previous_status: str | None
    """None for the first entry of a node."""
    status: str
    reason: str
    note: str | None
    actor: str
    changed_at: AwareDatetime


class NodeStatusChanged(Reply):
    typename: Literal["NodeStatusChanged"] = Field("NodeStatusChanged", alias="__typename")
    change: StatusChange
    node: NodeWithReason | None
    """The node when the event was sent; None once it has been removed."""

    @property
    def revision(self) -> int:
        return self.change.revision


class Bookmark(Reply):
    """The event that all matching changes up to this revision have been sent."""

    typename: Literal["Bookmark"] = Field("Bookmark", alias="__typename")
    revision: Revision


class ResyncRequired(Reply):
    """The event that changes before this revision may be missing: read the nodes again."""

    typename: Literal["ResyncRequired"] = Field("ResyncRequired", alias="__typename")
    revision: Revision
    reason: str


StatusEvent = NodeStatusChanged | Bookmark | ResyncRequired


class NodeStatusChangesData(Reply):
    node_status_changes: Annotated[StatusEvent, Field(discriminator="typename")]


class RegistryRevision(Reply):
    revision: Revision


class RevisionData(Reply):
    registry: RegistryRevision


class AvailableNodesSnapshot(Reply):
    """The event with the whole set of available nodes."""

    typename: Literal["AvailableNodesSnapshot"] = Field(
        "AvailableNodesSnapshot", alias="__typename"
    )
    revision: Revision
    nodes: list[NodeWithReason]


class NodeBecameAvailable(Reply):
    typename: Literal["NodeBecameAvailable"] = Field("NodeBecameAvailable", alias="__typename")
    revision: Revision
    node: NodeWithReason


class NodeBecameUnavailable(Reply):
    typename: Literal["NodeBecameUnavailable"] = Field("NodeBecameUnavailable", alias="__typename")
    revision: Revision
    node_id: str
    reasons: list[str]


AvailableNodesEvent = AvailableNodesSnapshot | NodeBecameAvailable | NodeBecameUnavailable


class AvailableNodesChangesData(Reply):
    available_nodes_changes: Annotated[AvailableNodesEvent, Field(discriminator="typename")]


class NodeWithCapabilities(NodeWithReason):
    capabilities: dict[str, Any]


class PageInfo(Reply):
    has_next_page: bool
    end_cursor: str | None


class NodePage(Reply):
    nodes: list[NodeWithCapabilities]
    page_info: PageInfo


class NodesData(Reply):
    nodes: NodePage


class NodeData(Reply):
    node: NodeWithCapabilities | None


class NodeCandidate(Reply):
    node: NodeWithCapabilities
    score: float


class NodeExclusion(Reply):
    node_id: str
    reasons: list[str]


class AvailableNodes(Reply):
    """The candidates, best first, as of `observed_at`, the time of the registry's node snapshot."""

    candidates: list[NodeCandidate]
    excluded: list[NodeExclusion]
    revision: Revision
    observed_at: AwareDatetime


class AvailableNodesData(Reply):
    available_nodes: AvailableNodes
