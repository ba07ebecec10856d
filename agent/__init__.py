"""The Python client of the node registry: queries, subscriptions and their errors.

The agent itself, which registers a node and sends its heartbeats, is the command `node-agent`.
"""

from agent.errors import (
    RegistryError,
    RegistryRestartingError,
    RegistryUnavailableError,
    RequestRejectedError,
)
from agent.follow import follow_available_nodes, follow_status_changes
from agent.replies import (
    AvailableNodes,
    AvailableNodesEvent,
    AvailableNodesSnapshot,
    Bookmark,
    NodeBecameAvailable,
    NodeBecameUnavailable,
    NodeCandidate,
    NodeExclusion,
    NodeStatusChanged,
    NodeWithCapabilities,
    NodeWithReason,
    ResyncRequired,
    StatusChange,
    StatusEvent,
)
from agent.router_client import Answer, RegistryClient
from agent.tls import TlsConfig, UnusableFileError

__all__ = [
    "Answer",
    "AvailableNodes",
    "AvailableNodesEvent",
    "AvailableNodesSnapshot",
    "Bookmark",
    "NodeBecameAvailable",
    "NodeBecameUnavailable",
    "NodeCandidate",
    "NodeExclusion",
    "NodeStatusChanged",
    "NodeWithCapabilities",
    "NodeWithReason",
    "RegistryClient",
    "RegistryError",
    "RegistryRestartingError",
    "RegistryUnavailableError",
    "RequestRejectedError",
    "ResyncRequired",
    "StatusChange",
    "StatusEvent",
    "TlsConfig",
    "UnusableFileError",
    "follow_available_nodes",
    "follow_status_changes",
]
