"""What Prometheus scrapes; names and units by its conventions, labels from bounded sets."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

MAX_OPERATION_NAMES = 100


class Metrics:
    """The metrics of one app; a process may hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.nodes = Gauge(
            "node_registry_nodes", "Registered nodes.", ["status"], registry=self.registry
        )
        self.heartbeats = Counter(
            "node_registry_heartbeats",
            "Heartbeats by outcome: accepted, or the code of the refusal.",
            ["outcome"],
            registry=self.registry,
        )
        self.heartbeat_batch = Histogram(
            "node_registry_heartbeat_batch_size",
            "Heartbeats written by one statement.",
            registry=self.registry,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        )
        self.operation_seconds = Histogram(
            "node_registry_operation_duration_seconds",
            "Queries and mutations, over HTTP and websockets.",
            ["operation", "outcome"],
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.connections = Gauge(
            "node_registry_connections",
            "Open websockets and event streams.",
            registry=self.registry,
        )
        self._operation_names: set[str] = set()

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is scraped."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def observe_operation(self, name: str | None, outcome: str, seconds: float) -> None:
        self.operation_seconds.labels(self._operation_label(name), outcome).observe(seconds)

    def _operation_label(self, name: str | None) -> str:
        """The name that a client gave its operation, for the first hundred such names."""
        if not name:
            return "anonymous"
        if name in self._operation_names:
            return name
        if len(self._operation_names) >= MAX_OPERATION_NAMES:
            return "other"
        self._operation_names.add(name)
        return name
