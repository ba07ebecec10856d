"""The registry's enums; their values are what PostgreSQL stores, in lower case."""

from enum import StrEnum


class Role(StrEnum):
    """The role of a caller; `graph.auth.permissions` says which roles a field requires.

    ENROLMENT is the role of a token that can only register nodes, each of which gets its own token.
    """

    AGENT = "agent"
    ROUTER = "router"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    ENROLMENT = "enrolment"


class NodeRole(StrEnum):
    PRODUCTION = "production"
    DEVELOPMENT = "development"
    BACKUP = "backup"


class NodeType(StrEnum):
    ROUTER = "router"
    GATEWAY = "gateway"
    WORKER = "worker"


class NodeStatus(StrEnum):
    ONLINE = "online"
    DEGRADED = "degraded"
    OFFLINE = "offline"
    MAINTENANCE = "maintenance"


class StatusReason(StrEnum):
    REGISTERED = "registered"
    HEARTBEAT = "heartbeat"
    SELF_REPORTED = "self_reported"
    MISSED_HEARTBEATS = "missed_heartbeats"
    FLAPPING = "flapping"
    MAINTENANCE_STARTED = "maintenance_started"
    MAINTENANCE_ENDED = "maintenance_ended"
    DEREGISTERED = "deregistered"
    SEEDED = "seeded"


class ProfileType(StrEnum):
    LLM = "llm"
    SERVICE = "service"
    CAPABILITY = "capability"


class RegistryMode(StrEnum):
    NORMAL = "normal"
    PROTECTED = "protected"


class NodeRanking(StrEnum):
    LEAST_LOADED = "least_loaded"
    MOST_FREE_MEMORY = "most_free_memory"
    MOST_FREE_GPU_MEMORY = "most_free_gpu_memory"
