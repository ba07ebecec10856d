"""The registry's closed sets of values, as PostgreSQL stores them: in lower case."""

from enum import StrEnum


class Role(StrEnum):
    """What a caller may do; `graph.auth.permissions` has which role may ask for which field.

    ENROLMENT is that of a key which only makes nodes known, and gives each a key of its own.
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
