"""The enums of the API: the enums of `db` in upper case, with a description of each value."""

from collections.abc import Mapping
from enum import Enum
from typing import TypeVar

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from db.core.enums import (
    NodeRanking,
    NodeRole,
    NodeStatus,
    NodeType,
    ProfileType,
    RegistryMode,
    Role,
    StatusReason,
)
from db.registry.nodes import NodeOrder

EnumT = TypeVar("EnumT", bound=type[Enum])


def _describe_enum(
    enum: EnumT, description: str, values: Mapping[str, str], *, name: str | None = None
) -> EnumT:
    enum_type = strawberry.enum(enum, name=name, description=description)
    definition: StrawberryEnumDefinition = enum_type.__strawberry_definition__  # type: ignore[attr-defined]  # set by the line above
    for value in definition.values:
        value.description = values[value.name]
    return enum_type


class ReportedStatus(Enum):
    ONLINE = "online"
    DEGRADED = "degraded"


class OrderDirection(Enum):
    ASC = "asc"
    DESC = "desc"


_describe_enum(
    NodeRole,
    "The purpose of a node.",
    {
        "PRODUCTION": "Serves production traffic.",
        "DEVELOPMENT": "Serves development and experiments.",
        "BACKUP": "Stands by to take over.",
    },
)
_describe_enum(
    NodeType,
    "The function of a node in the network.",
    {
        "ROUTER": "Selects the node that receives a request.",
        "GATEWAY": "Accepts requests from outside the network; may send heartbeats for many nodes.",
        "WORKER": "Executes the work.",
    },
)
_describe_enum(
    NodeStatus,
    "The status of a node.",
    {
        "ONLINE": "The node's heartbeats arrive in time.",
        "DEGRADED": "The node reports that it is degraded, or a heartbeat is overdue.",
        "OFFLINE": "The registry received no heartbeat for a whole lease.",
        "MAINTENANCE": "An operator has taken the node out of use.",
    },
)
_describe_enum(
    ReportedStatus,
    "The status that a node reports in a heartbeat.",
    {"ONLINE": "The node works normally.", "DEGRADED": "The node works with limitations."},
)
_describe_enum(
    StatusReason,
    "The reason for a node's status.",
    {
        "REGISTERED": "The node's agent registered it.",
        "HEARTBEAT": "A heartbeat arrived.",
        "SELF_REPORTED": "A heartbeat reported the status.",
        "MISSED_HEARTBEATS": "Heartbeats that were due did not arrive.",
        "FLAPPING": "The status changed too often to be trusted.",
        "MAINTENANCE_STARTED": "An operator started maintenance.",
        "MAINTENANCE_ENDED": "An operator ended maintenance, or its end time passed.",
        "DEREGISTERED": "The node was removed from the registry.",
        "SEEDED": "The node was added to the registry before an agent registered it.",
    },
)
_describe_enum(
    Role,
    "The role of a caller. The description of each field of Query, Mutation and Subscription"
    " lists the roles that may use it.",
    {
        "AGENT": "Acts for its own nodes only.",
        "ROUTER": "Reads.",
        "VIEWER": "Reads.",
        "OPERATOR": "Reads, and changes nodes and profiles.",
        "ADMIN": "Reads and changes everything.",
        "ENROLMENT": "Registers nodes. Each of them receives a token of its own.",
    },
)
_describe_enum(
    ProfileType,
    "The kind of thing that a profile configures.",
    {
        "LLM": "A language model.",
        "SERVICE": "A service.",
        "CAPABILITY": "Any other capability of a node.",
    },
)
_describe_enum(
    RegistryMode,
    "Whether the registry marks silent nodes OFFLINE. In PROTECTED mode, so many nodes became"
    " silent at once that the registry suspects a fault of its own and suspends expiry.",
    {
        "NORMAL": "Silent nodes are marked OFFLINE.",
        "PROTECTED": "Silent nodes are not marked OFFLINE until the registry returns to NORMAL.",
    },
)
_describe_enum(
    NodeRanking,
    "The order in which a router should try the candidates. Each score depends on the node alone"
    " and is between 0 and 1. A metric that the node has not measured scores 0, and a DEGRADED"
    " node scores half.",
    {
        "LEAST_LOADED": "1 - the mean utilization of the CPU, the memory and the GPUs, as far as"
        " the node measured them.",
        "MOST_FREE_MEMORY": "free / (free + 16 GiB) of the memory.",
        "MOST_FREE_GPU_MEMORY": "free / (free + 16 GiB) of the GPU with the most free memory.",
    },
)
_describe_enum(
    NodeOrder,
    "The field by which a list of nodes is sorted.",
    {
        "NODE_ID": "The node id.",
        "NAME": "The node's name.",
        "STATUS_SINCE": "The time of the last status change.",
        "REGISTERED_AT": "The time of the first registration.",
    },
    name="NodeOrderField",
)
_describe_enum(
    OrderDirection,
    "The direction in which a list is sorted.",
    {"ASC": "Smallest or oldest first.", "DESC": "Largest or newest first."},
)

__all__ = [
    "NodeOrder",
    "NodeRanking",
    "NodeRole",
    "NodeStatus",
    "NodeType",
    "OrderDirection",
    "ProfileType",
    "RegistryMode",
    "ReportedStatus",
    "Role",
    "StatusReason",
]
