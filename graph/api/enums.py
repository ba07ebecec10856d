"""The enums of the API: those of `db` in upper case, with a description for each value."""

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
    "What a node is for.",
    {
        "PRODUCTION": "Serves real traffic.",
        "DEVELOPMENT": "For building and trying things out.",
        "BACKUP": "Stands by to take over.",
    },
)
_describe_enum(
    NodeType,
    "What a node does in the network.",
    {
        "ROUTER": "Chooses the node that a request goes to.",
        "GATEWAY": "Lets requests in from outside, and may speak for many nodes.",
        "WORKER": "Does the work.",
    },
)
_describe_enum(
    NodeStatus,
    "What the registry says of a node.",
    {
        "ONLINE": "It sends its heartbeats in time.",
        "DEGRADED": "It says so of itself, or a heartbeat is overdue.",
        "OFFLINE": "Nothing was heard of it for a whole lease.",
        "MAINTENANCE": "An operator has taken it out of use.",
    },
)
_describe_enum(
    ReportedStatus,
    "What a node may say of itself in a heartbeat.",
    {"ONLINE": "All is well.", "DEGRADED": "It works, but not as it should."},
)
_describe_enum(
    StatusReason,
    "Why a node has the status it has.",
    {
        "REGISTERED": "Its agent registered it.",
        "HEARTBEAT": "A heartbeat came.",
        "SELF_REPORTED": "A heartbeat said so.",
        "MISSED_HEARTBEATS": "Heartbeats that were due did not come.",
        "FLAPPING": "Its status changed too often to be believed.",
        "MAINTENANCE_STARTED": "An operator began maintenance.",
        "MAINTENANCE_ENDED": "An operator ended maintenance, or its time was up.",
        "DEREGISTERED": "It was removed from the registry.",
        "SEEDED": "The registry knew it before any agent registered it.",
    },
)
_describe_enum(
    Role,
    "What a caller may do; each field of Query, Mutation and Subscription says whose it is.",
    {
        "AGENT": "Speaks for its own nodes, and for no other.",
        "ROUTER": "Reads.",
        "VIEWER": "Reads.",
        "OPERATOR": "Reads, and changes nodes and profiles.",
        "ADMIN": "May do everything.",
        "ENROLMENT": "Makes nodes known, each of which gets a key of its own.",
    },
)
_describe_enum(
    ProfileType,
    "What a profile sets up.",
    {
        "LLM": "A language model.",
        "SERVICE": "A service.",
        "CAPABILITY": "Anything else that a node can do.",
    },
)
_describe_enum(
    RegistryMode,
    "Whether the registry trusts what it hears."
    " PROTECTED: so many nodes fell silent at once that the registry doubts itself and holds"
    " expiry back.",
    {
        "NORMAL": "Silent nodes are marked offline.",
        "PROTECTED": "Silent nodes are not marked offline for now.",
    },
)
_describe_enum(
    NodeRanking,
    "Which node a router should try first. Each score is of the node alone, 0 to 1; what it has not"
    " measured scores 0, and a DEGRADED node scores half.",
    {
        "LEAST_LOADED": "1 - the mean of what is in use, as far as it is measured, of the CPU, the"
        " memory and the GPUs' time.",
        "MOST_FREE_MEMORY": "free / (free + 16 GiB) of the memory.",
        "MOST_FREE_GPU_MEMORY": "free / (free + 16 GiB) of the GPU that has most free.",
    },
)
_describe_enum(
    NodeOrder,
    "What a list of nodes is sorted by.",
    {
        "NODE_ID": "The node id.",
        "NAME": "The node's name.",
        "STATUS_SINCE": "The moment of the last status change.",
        "REGISTERED_AT": "The moment of the first registration.",
    },
    name="NodeOrderField",
)
_describe_enum(
    OrderDirection,
    "Which end of a list comes first.",
    {"ASC": "The smallest or the oldest.", "DESC": "The largest or the newest."},
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
