"""A model of the liveness rules in plain Python, one node at a time, to compare with the SQL."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from db.registry.liveness_rules import LivenessRules

TTL_INTERVALS = 3


@dataclass
class ModelNode:
    """A node; times are whole seconds since the start of the example."""

    node_id: str
    boot: str
    host: str
    labels: tuple[str, ...]
    heard_at: int
    interval: int
    status: str = "online"
    reason: str = "registered"
    since: int = 0
    sequence: int | None = None
    says_degraded: bool = False
    steady: int = 0
    until: int | None = None
    falls_and_returns: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """A row of the change log."""

    node_id: str
    previous: str | None
    status: str
    reason: str
    actor: str
    changed_at: int


@dataclass
class Model:
    rules: LivenessRules
    now: int = 0
    floor: int = 0
    mode: str = "normal"
    mode_since: int = 0
    last_change: int = 0
    seen_at: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, ModelNode] = field(default_factory=dict)
    log: list[Row] = field(default_factory=list)

    @property
    def ttl(self) -> float:
        return TTL_INTERVALS * self.rules.min_interval + self.rules.grace

    def overdue_at(self, node: ModelNode) -> float:
        return max(node.heard_at, self.floor) + node.interval + self.rules.grace

    def expires_at(self, node: ModelNode) -> float:
        lease = TTL_INTERVALS * node.interval + self.rules.grace
        if node.reason == "flapping":
            lease = max(lease, self.rules.flap_steady)
        return max(node.heard_at, self.floor) + lease

    def _change(
        self, node: ModelNode, status: str, reason: str, actor: str = "system/registry"
    ) -> None:
        if status == "online" and reason != "maintenance_ended" and node.reason != "flapping":
            window = self.now - self.rules.flap_window
            recent = [at for at in node.falls_and_returns if at > window]
            if len(recent) >= self.rules.flap_transitions:
                status, reason = "degraded", "flapping"
        self.last_change = max(self.last_change, self.now)
        has_changed = status != node.status
        is_released = node.reason == "flapping" and reason == "heartbeat"
        if has_changed and (is_released or "missed_heartbeats" in {reason, node.reason}):
            weight = self.rules.flap_transitions if node.reason == "flapping" else 1
            node.falls_and_returns += [self.last_change] * weight
        self.log.append(Row(node.node_id, node.status, status, reason, actor, self.last_change))
        if has_changed:
            node.since = self.last_change
        node.status, node.reason = status, reason
        if reason == "flapping":
            node.steady = self.now
        if status != "maintenance":
            node.until = None

    def register(
        self, node_id: str, boot: str, *, host: str, replaces: str | None, labels: tuple[str, ...]
    ) -> str:
        interval = int(self.rules.min_interval)
        node = self.nodes.get(node_id)
        if node is None:
            node = ModelNode(node_id, boot, host, labels, self.now, interval)
            self.last_change = node.since = max(self.last_change, self.now)
            self.nodes[node_id] = node
            self.log.append(Row(node_id, None, "online", "registered", "agent", node.since))
            return "created"
        if boot != node.boot:
            restarted = replaces == node.boot and host == node.host
            if self.now < self.overdue_at(node) and not restarted:
                return "NODE_ID_TAKEN"
            node.boot, node.sequence = boot, None
        node.host, node.says_degraded, node.interval = host, False, interval
        node.heard_at = max(node.heard_at, self.now)
        if node.status in {"offline", "degraded"} and node.reason != "flapping":
            self._change(node, "online", "registered", "agent")
        return "registered"

    def heartbeat(
        self, node_id: str, boot: str, sequence: int, *, degraded: bool, interval: int
    ) -> str:
        """Return the outcome: an error code, or the node's status."""
        node = self.nodes.get(node_id)
        if node is None:
            return "NODE_NOT_FOUND"
        if boot != node.boot:
            return "STALE_BOOT"
        if node.sequence is not None and sequence <= node.sequence:
            return node.status
        late = self.now >= self.overdue_at(node)
        node.heard_at = max(node.heard_at, self.now)
        node.sequence, node.says_degraded, node.interval = sequence, degraded, interval
        if node.status == "maintenance":
            return node.status
        if self._is_held(node, late=late):
            return node.status
        if degraded:
            if node.reason != "self_reported" or node.status != "degraded":
                self._change(node, "degraded", "self_reported", "agent")
        elif node.status != "online":
            self._change(node, "online", "heartbeat", "agent")
        return node.status

    def _is_held(self, node: ModelNode, *, late: bool) -> bool:
        if node.reason != "flapping":
            return False
        if late:
            node.steady = node.heard_at
        return node.heard_at - node.steady < self.rules.flap_steady

    def start_maintenance(self, node_id: str, until: int | None) -> None:
        node = self.nodes[node_id]
        self._change(node, "maintenance", "maintenance_started", "op")
        node.until = until

    def end_maintenance(self, node_id: str) -> None:
        node = self.nodes[node_id]
        if node.status == "maintenance":
            self._change(node, self._compute_status(node), "maintenance_ended", "op")

    def deregister(self, node_id: str) -> None:
        self._change(self.nodes.pop(node_id), "offline", "deregistered", "op")

    def _compute_status(self, node: ModelNode) -> str:
        if self.now >= self.expires_at(node) and self.mode == "normal":
            return "offline"
        late = self.now >= self.overdue_at(node)
        return "degraded" if late or node.says_degraded else "online"

    def leave(self, process: str) -> None:
        self.seen_at.pop(process, None)

    def sweep(self, process: str) -> None:
        if self._has_had_outage():
            self.floor = self.now
            self.mode_since = min(self.mode_since, self.now)
            for node in self.nodes.values():
                node.heard_at = min(node.heard_at, self.now)
                node.steady = min(node.steady, self.now)
        timeout = self.rules.process_timeout
        self.seen_at = {p: at for p, at in self.seen_at.items() if abs(self.now - at) <= timeout}
        self.seen_at[process] = self.now
        self._update_mode()
        removable = list(self._list_removable())
        for node in self.nodes.values():
            self._apply_rules(node)
        for node in removable:
            self._change(self.nodes.pop(node.node_id), "offline", "deregistered")

    def _has_had_outage(self) -> bool:
        timeout = self.rules.process_timeout
        if not self.seen_at or abs(self.now - max(self.seen_at.values())) > timeout:
            return True
        return (
            self.now - min(self.seen_at.values()) > timeout and self.now - self.floor > 2 * self.ttl
        )

    def _update_mode(self) -> None:
        live = [node for node in self.nodes.values() if node.status in {"online", "degraded"}]
        has_enough_nodes = len(live) >= self.rules.protect_min_nodes
        if self.mode == "normal":
            silent = [node for node in live if self.mode_since < self.overdue_at(node) <= self.now]
            if has_enough_nodes and len(silent) > len(live) * self.rules.protect_fraction:
                self.mode, self.mode_since = "protected", self.now
            return
        silent = [
            node for node in live if node.heard_at + node.interval + self.rules.grace <= self.now
        ]
        have_returned = len(silent) <= len(live) * self.rules.protect_fraction / 2
        if (
            have_returned
            or not has_enough_nodes
            or self.now - self.mode_since >= self.rules.protect_max
        ):
            self.mode, self.mode_since = "normal", self.now

    def _apply_rules(self, node: ModelNode) -> None:
        if node.status == "maintenance":
            if node.until is not None and node.until <= self.now:
                self._change(node, self._compute_status(node), "maintenance_ended")
        elif node.status != "offline" and self._compute_status(node) == "offline":
            self._change(node, "offline", "missed_heartbeats")
        elif node.status == "online" and self.now >= self.overdue_at(node):
            self._change(node, "degraded", "missed_heartbeats")

    def _list_removable(self) -> Iterator[ModelNode]:
        after = self.rules.remove_offline_after
        for node in self.nodes.values():
            limits = [after[label] for label in node.labels if label in after]
            if (
                limits
                and node.status == "offline"
                and self.mode == "normal"
                and self.now >= self.expires_at(node)
                and self.now - node.since >= min(limits)
            ):
                yield node
