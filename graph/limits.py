"""How much of a process one caller, and all together, may hold open."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from graph.errors import RateLimited
from graph.metrics import Metrics
from graph.settings import Settings

RETRY_AFTER_SECONDS = 5.0

ANONYMOUS = "anonymous"
"""The actor of whoever has not said who they are."""


class Limits:
    """Connections are websockets and event streams: what stays open."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_connections = settings.max_connections
        self._max_subscriptions = settings.max_subscriptions_per_caller
        self._metrics = metrics
        self._connections = 0
        self._subscriptions: Counter[str] = Counter()

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Raises RateLimited when there are too many already."""
        if self._connections >= self._max_connections:
            raise _too_many(f"at most {self._max_connections} connections to one process")
        self._connections += 1
        try:
            with self._metrics.connections.track_inprogress():
                yield
        finally:
            self._connections -= 1

    @contextmanager
    def subscription(self, actor: str, address: str) -> Iterator[None]:
        """Raises RateLimited when the caller, if unknown the address, has too many already."""
        caller = address if actor == ANONYMOUS else actor
        if self._subscriptions[caller] >= self._max_subscriptions:
            raise _too_many(f"at most {self._max_subscriptions} subscriptions of one caller")
        self._subscriptions[caller] += 1
        try:
            yield
        finally:
            self._subscriptions[caller] -= 1
            if not self._subscriptions[caller]:
                del self._subscriptions[caller]


def _too_many(message: str) -> RateLimited:
    return RateLimited(message, retryAfterSeconds=RETRY_AFTER_SECONDS)
