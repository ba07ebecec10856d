"""The counters and timers that Prometheus scrapes, named by its conventions.

Labels have few values: untrusted operations share one, and outcomes are the registry's error codes.
`graph.transport.prometheus` adds the metrics that are read at each scrape.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from db.core.errors import RateLimited, RegistryError, Unavailable
from db.registry.heartbeats import HeartbeatAck
from graph.core.errors import ERROR_COUNTER, INTERNAL, list_error_codes
from graph.core.item_failures import ITEM_FAILURES, TASKS

OK = "ok"
"""The outcome of an operation without errors; otherwise it is the code of the first error."""

CANCELLED = "cancelled"
"""The outcome of an operation whose client disconnected before its end."""

ACCEPTED = "accepted"
"""The outcome of an accepted heartbeat; otherwise it is the code of its error."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# A `_created` series for each counter would double their number; Prometheus knows the start anyway.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one app; a process may have several apps."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(ERROR_COUNTER)
        self.registry.register(ITEM_FAILURES)
        histogram = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        self._heartbeats = Counter(
            "node_registry_heartbeats",
            "Heartbeats, by outcome: accepted, or the code of the error.",
            ["outcome"],
            registry=self.registry,
        )
        self.budget_exceeded = Counter(
            "node_registry_node_budget_exceeded",
            "Times that a node's bytes of the day were used up, by what it sent: a heartbeat, whose"
            " metrics were dropped, or a registration, which was rejected.",
            ["sent"],
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "node_registry_heartbeat_batch_size",
            "Heartbeats written by one statement.",
            registry=self.registry,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        )
        self._write_seconds = histogram(
            "node_registry_heartbeat_write_duration_seconds",
            "Time from the start of a batch of heartbeats to its commit.",
        )
        self._operation_seconds = histogram(
            "node_registry_operation_duration_seconds",
            "Time taken by queries and mutations, over HTTP and websockets.",
            ["operation", "type", "outcome"],
        )
        self.sweep_seconds = histogram(
            "node_registry_sweep_duration_seconds", "Time taken by completed sweeps."
        )
        self.sweep_failures = Counter(
            "node_registry_sweep_failures",
            "Sweeps that failed.",
            registry=self.registry,
        )
        self.housekeeping_seconds = histogram(
            "node_registry_upkeep_duration_seconds", "Time taken by rounds of housekeeping."
        )
        self.dropped_early = Counter(
            "node_registry_dropped_early",
            "Partitions, and batches of audit entries, that were dropped before their time to make"
            " room.",
            ["table"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "node_registry_connections",
            "Open websockets and event streams.",
            registry=self.registry,
        )
        # Create the series at 0, so that rate() sees the first increment.
        for code in list_error_codes():
            ERROR_COUNTER.labels(code)
        for task in TASKS:
            ITEM_FAILURES.labels(task)
        for outcome in (ACCEPTED, RateLimited.code, Unavailable.code, INTERNAL):
            self._heartbeats.labels(outcome)
        for table in ("heartbeat_log", "metrics_history", "audit_log"):
            self.dropped_early.labels(table)
        for sent in ("heartbeat", "registration"):
            self.budget_exceeded.labels(sent)
        # Looking up a labelled child takes longer than counting with it.
        self._timers: dict[tuple[str, str, str], Histogram] = {}
        self._counters: dict[str, Counter] = {}

    def observe_operation(self, operation: str, kind: str, outcome: str, seconds: float) -> None:
        """Record a finished operation; each of the three labels must come from a small set."""
        key = operation, kind, outcome
        timer = self._timers.get(key)
        if timer is None:
            timer = self._timers[key] = self._operation_seconds.labels(*key)
        timer.observe(seconds)

    def observe_batch(self, outcomes: Sequence[object], seconds: float) -> None:
        """Record a batch of heartbeats written in `seconds`, given the outcome or error of each."""
        self._batch_size.observe(len(outcomes))
        self._write_seconds.observe(seconds)
        rejections = [outcome for outcome in outcomes if isinstance(outcome, RegistryError)]
        if accepted := len(outcomes) - len(rejections):
            self.count_heartbeats(ACCEPTED, accepted)
        for outcome in outcomes:
            if isinstance(outcome, HeartbeatAck) and outcome.metrics_dropped:
                self.budget_exceeded.labels("heartbeat").inc()
        for rejection in rejections:
            self.count_heartbeats(rejection.code)

    def count_heartbeats(self, outcome: str, count: int = 1) -> None:
        counter = self._counters.get(outcome)
        if counter is None:
            counter = self._counters[outcome] = self._heartbeats.labels(outcome)
        counter.inc(count)

    def add_gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Register a gauge whose value `read` returns at each scrape."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def add_counter(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Register a counter whose total `read` returns at each scrape, and which never falls."""
        self.registry.register(_CallbackCounter(name, description, read))


class _CallbackCounter(Collector):
    def __init__(self, name: str, description: str, read: Callable[[], float]) -> None:
        self._name, self._description, self._read = name, description, read

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._description, value=self._read())
