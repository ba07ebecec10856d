"""The client of the node registry: its questions, its subscriptions and their errors.

The agent itself, which registers a node and sends its heartbeats, is the command `node-agent`.
"""

from agent.client import RefusedError, RegistryAwayError, RestartingError
from agent.follow import follow_available_nodes, follow_status_changes
from agent.replies import (
    Availability,
    AvailabilityEvent,
    AvailableNodes,
    Bookmark,
    Candidate,
    CapableNode,
    Exclusion,
    NodeBecameAvailable,
    NodeBecameUnavailable,
    NodeStatusChanged,
    NodeWithReason,
    ResyncRequired,
    StatusChange,
    StatusEvent,
)
from agent.router_client import Answer, RegistryClient
from agent.tls import Trust, UnusableFileError

__all__ = [
    "Answer",
    "Availability",
    "AvailabilityEvent",
    "AvailableNodes",
    "Bookmark",
    "Candidate",
    "CapableNode",
    "Exclusion",
    "NodeBecameAvailable",
    "NodeBecameUnavailable",
    "NodeStatusChanged",
    "NodeWithReason",
    "RefusedError",
    "RegistryAwayError",
    "RegistryClient",
    "RestartingError",
    "ResyncRequired",
    "StatusChange",
    "StatusEvent",
    "Trust",
    "UnusableFileError",
    "follow_available_nodes",
    "follow_status_changes",
]
