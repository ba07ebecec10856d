"""The events of subscriptions as plain data; `graph.api.events` shows them as API objects.

An event is one object for all subscribers that receive it: its identity is the key under which
`graph.execution.event_sharing` keeps its encoded form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from db.core import tables
from db.registry.status_changes import LoggedChange, NodeRow


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """A status change, and its node as it stood when the log was read; None once removed.

    The node has the attributes of `tables.Node`.
    """

    change: LoggedChange
    node: NodeRow | None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A sign of progress: no matching change up to this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class ResyncRequired:
    """The stream ends because it cannot continue without a gap.

    `graph.live.change_stream` yields it where the log was trimmed or reset, or the
    reader fell behind.
    """

    revision: int
    reason: str


@dataclass(frozen=True, slots=True)
class CandidatesSnapshot:
    """All nodes that meet the requirements of a watch, by node id."""

    revision: int
    nodes: Sequence[tables.Node]


@dataclass(frozen=True, slots=True)
class CandidateEntered:
    """A node that meets the requirements of a watch from this revision on."""

    revision: int
    node: tables.Node


@dataclass(frozen=True, slots=True)
class CandidateLeft:
    """A node that no longer meets the requirements of a watch, one reason for each unmet one."""

    revision: int
    node_id: str
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class PaceChanged:
    """The interval in seconds, without jitter, that heartbeat replies set from now on."""

    interval_seconds: float


StatusEvent = StatusChanged | Bookmark | ResyncRequired
CandidateEvent = CandidatesSnapshot | CandidateEntered | CandidateLeft
