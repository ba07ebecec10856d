"""How much of a process one caller, and all together, may use and hold open."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from db.core.identity import ANONYMOUS, Caller
from graph.auth.rate_limiter import RateLimiter
from graph.core.errors import RateLimited
from graph.core.settings import Settings
from graph.telemetry.metrics import Metrics

RETRY_AFTER_SECONDS = 5.0
_BURST_SECONDS = 2.0


class CallerLimits:
    """Connections are websockets and event streams: what stays open.

    Whoever is known is counted by name, and everybody by address: what one is refused for costs
    no other.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_connections = settings.max_connections
        self._max_subscriptions = settings.max_subscriptions_per_caller
        self._metrics = metrics
        self._connections = 0
        self._subscriptions: Counter[str] = Counter()
        self._requests = _make_limiter("requests", settings.requests_per_second)
        self._requests_of_address = _make_limiter(
            "requests from one address", settings.requests_per_second_per_address
        )
        self._messages = _make_limiter("messages", settings.requests_per_second)
        self._messages_of_address = _make_limiter(
            "messages from one address", settings.requests_per_second_per_address
        )
        self._heartbeats = _make_limiter("heartbeats", settings.heartbeats_per_second)
        self._registrations = RateLimiter.per_minute(
            "registrations", settings.registrations_per_minute
        )

    @property
    def rates(self) -> list[RateLimiter]:
        """Of which all processes together are to let no more through than one may."""
        return [
            self._requests,
            self._requests_of_address,
            self._heartbeats,
            self._registrations,
        ]

    def charge_request(self, caller: Caller) -> None:
        """Raises RateLimited."""
        _charge(caller, self._requests, self._requests_of_address)

    def charge_message(self, caller: Caller) -> None:
        """Of a websocket's that is no request, or one too many. Raises RateLimited."""
        _charge(caller, self._messages, self._messages_of_address)

    def charge_heartbeats(self, caller: Caller, count: int) -> None:
        """Raises RateLimited."""
        self._heartbeats.take(caller.rate_key, count)

    def charge_registration(self, caller: Caller) -> None:
        """Raises RateLimited."""
        self._registrations.take(caller.rate_key)

    @contextmanager
    def hold_connection(self) -> Iterator[None]:
        """Raises RateLimited when there are too many already."""
        if self._connections >= self._max_connections:
            raise _make_limit_error(f"at most {self._max_connections} connections to one process")
        self._connections += 1
        try:
            with self._metrics.connections.track_inprogress():
                yield
        finally:
            self._connections -= 1

    @contextmanager
    def hold_subscription(self, caller: Caller) -> Iterator[None]:
        """Raises RateLimited when the caller has too many already."""
        counted_as = caller.rate_key
        if self._subscriptions[counted_as] >= self._max_subscriptions:
            raise _make_limit_error(f"at most {self._max_subscriptions} subscriptions of one caller")
        self._subscriptions[counted_as] += 1
        try:
            yield
        finally:
            self._subscriptions[counted_as] -= 1
            if not self._subscriptions[counted_as]:
                del self._subscriptions[counted_as]


def _charge(caller: Caller, of_identity: RateLimiter, of_address: RateLimiter) -> None:
    if caller.identity is not ANONYMOUS:
        of_identity.take(caller.identity.name)
    of_address.take(caller.address or "")


def _make_limiter(what: str, per_second: float) -> RateLimiter:
    return RateLimiter(what, per_second=per_second, burst=per_second * _BURST_SECONDS)


def _make_limit_error(message: str) -> RateLimited:
    return RateLimited(message, retryAfterSeconds=RETRY_AFTER_SECONDS)
