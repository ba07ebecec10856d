"""What the agent reads in the registry's answers, checked before it is acted upon."""

from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from agent.identity import is_node_id

MIN_INTERVAL_SECONDS = 0.05
MAX_INTERVAL_SECONDS = 86_400.0

Interval = Annotated[
    float, Field(ge=MIN_INTERVAL_SECONDS, le=MAX_INTERVAL_SECONDS, allow_inf_nan=False)
]


def _storable(node_id: str) -> str:
    if not is_node_id(node_id):
        raise ValueError("not a node id")
    return node_id


class Reply(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Node(Reply):
    node_id: Annotated[str, AfterValidator(_storable)]
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


class Registered(Reply):
    node: Node
    created: bool
    next_heartbeat_in_seconds: Interval


class HeartbeatRecorded(Reply):
    node_id: str
    status: str
    received_at: AwareDatetime
    next_heartbeat_in_seconds: Interval


class RegisterNodeData(Reply):
    register_node: Registered


class RecordHeartbeatData(Reply):
    record_heartbeat: HeartbeatRecorded


class NodeStatusData(Reply):
    node: NodeWithReason | None
