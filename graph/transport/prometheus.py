"""The metrics in Prometheus's text format: counted as events happen, or read at each scrape."""

import math
from functools import partial

from prometheus_client import Gauge, generate_latest

from db.core.database import Database
from db.core.enums import RegistryMode
from db.core.errors import Unavailable
from db.registry import nodes, status_changes
from graph.core.version import VERSION
from graph.services import Services


class PrometheusScrape:
    """Renders the metrics; one for each app. A value that cannot be read now is NaN."""

    def __init__(self, services: Services) -> None:
        self._services = services
        registry = services.metrics.registry
        _add_registry_metrics(services)
        _add_subscription_metrics(services)
        _add_pool_metrics(services)
        self._nodes = Gauge(
            "node_registry_nodes", "Registered nodes.", ["status"], registry=registry
        )
        self._log_revision = Gauge(
            "node_registry_log_revision", "Newest revision of the change log.", registry=registry
        )
        self._lag = Gauge(
            "node_registry_feed_lag_seconds",
            "Age of the oldest change that this process has not yet read, by the database's clock.",
            registry=registry,
        )
        self._up = Gauge(
            "node_registry_database_up", "1 if the database answered, else 0.", registry=registry
        )
        self._size = Gauge(
            "node_registry_database_size_bytes", "Disk that the database takes.", registry=registry
        )
        if services.peer_metrics is not None:
            serve = partial(services.peer_metrics.serve, self._render_own)
            services.background_tasks.start("peer_metrics", serve)

    async def render(self) -> bytes:
        """Return the metrics of all workers, in Prometheus's text format."""
        peer_metrics = self._services.peer_metrics
        return await (self._render_own() if peer_metrics is None else peer_metrics.collect())

    async def _render_own(self) -> bytes:
        try:
            await self._read_database(self._services.database)
            self._up.set(1)
        except Unavailable:
            self._up.set(0)
            self._nodes.clear()
            for gauge in (self._log_revision, self._lag, self._size):
                gauge.set(math.nan)
        return generate_latest(self._services.metrics.registry)

    async def _read_database(self, database: Database) -> None:
        async with database.read() as session:
            counts = await nodes.count_nodes_by_status(session)
            revision, lag_seconds = await status_changes.measure_lag(
                session, self._services.change_feed.revision
            )
        self._size.set(await database.measure_size_bytes())
        for status, count in counts.items():
            self._nodes.labels(status).set(count)
        self._log_revision.set(revision)
        self._lag.set(lag_seconds)


def _add_registry_metrics(services: Services) -> None:
    sweeper, heartbeats = services.sweeper, services.heartbeat_writer
    metrics, settings = services.metrics, services.settings
    Gauge(
        "node_registry_build_info",
        "Always 1.",
        ["version", "environment"],
        registry=metrics.registry,
    ).labels(VERSION, settings.env).set(1)
    metrics.add_gauge(
        "node_registry_protected",
        "1 while the registry holds expiry back, else 0.",
        lambda: sweeper.mode is RegistryMode.PROTECTED,
    )
    metrics.add_gauge(
        "node_registry_last_sweep_timestamp_seconds",
        "When a sweep was last done.",
        lambda: sweeper.swept_at,
    )
    metrics.add_gauge(
        "node_registry_heartbeat_interval_seconds",
        "The heartbeat interval that replies set.",
        lambda: sweeper.rules.interval,
    )
    metrics.add_gauge(
        "node_registry_heartbeats_waiting",
        "Heartbeats that wait to be written.",
        lambda: heartbeats.queued_reports,
    )


def _add_subscription_metrics(services: Services) -> None:
    metrics, change_feed = services.metrics, services.change_feed
    heartbeat_tail, node_snapshot, pace = (
        services.heartbeat_tail,
        services.node_snapshot,
        services.sweeper.pace,
    )
    subscribers = Gauge(
        "node_registry_subscribers", "Open subscriptions.", ["stream"], registry=metrics.registry
    )
    subscribers.labels("status_changes").set_function(lambda: change_feed.subscriber_count)
    subscribers.labels("heartbeats").set_function(lambda: heartbeat_tail.subscriber_count)
    subscribers.labels("available_nodes").set_function(lambda: node_snapshot.subscriber_count)
    subscribers.labels("pace").set_function(lambda: pace.follower_count)
    metrics.add_gauge(
        "node_registry_max_connections",
        "The maximum of open websockets and event streams.",
        lambda: services.settings.max_connections,
    )
    metrics.add_gauge(
        "node_registry_revision",
        "Newest revision handed to subscribers.",
        lambda: change_feed.revision,
    )
    metrics.add_gauge(
        "node_registry_feed_connected",
        "1 while the connection that listens for changes is held, else 0.",
        lambda: change_feed.is_connected,
    )
    metrics.add_counter(
        "node_registry_feed_set_backs",
        "How often the change log was found to differ from the one read before.",
        lambda: change_feed.log_resets,
    )


def _add_pool_metrics(services: Services) -> None:
    metrics, database = services.metrics, services.database
    metrics.add_gauge(
        "node_registry_pool_connections",
        "Database connections in use by requests.",
        database.count_connections_in_use,
    )
    metrics.add_gauge(
        "node_registry_pool_max_connections",
        "Database connections available to requests.",
        lambda: database.pool_size,
    )
    metrics.add_counter(
        "node_registry_database_failures",
        "Units of work that failed because the database was unreachable, busy or slow.",
        lambda: database.failure_count,
    )
