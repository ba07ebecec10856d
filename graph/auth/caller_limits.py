"""The limits of a process on what one caller, and all callers together, use and keep open."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from db.core.errors import RateLimited
from db.core.identity import ANONYMOUS, Caller
from graph.auth.rate_limiter import RateLimiter
from graph.core.settings import Settings
from graph.telemetry.metrics import Metrics

RETRY_AFTER_SECONDS = 5.0
ROTATIONS_PER_SECOND = 1 / 60
ROTATIONS_AT_ONCE = 20
"""An agent rotates its token every few weeks; each rotation leaves a row and an audit entry."""

_BURST_SECONDS = 2.0


class CallerLimits:
    """Limits on rates, open connections (websockets and event streams) and subscriptions.

    Identified callers are counted by name, and all callers by address, so that one caller's excess
    does not limit another.
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
        self._rotations = RateLimiter(
            "rotations", per_second=ROTATIONS_PER_SECOND, burst=ROTATIONS_AT_ONCE
        )

    @property
    def shared_limiters(self) -> list[RateLimiter]:
        """The rate limits that all processes share (`graph.auth.rate_sync`)."""
        return [
            self._requests,
            self._requests_of_address,
            self._heartbeats,
            self._registrations,
            self._rotations,
        ]

    def charge_request(self, caller: Caller) -> None:
        """Charge the caller for an operation. Raises RateLimited."""
        _charge(caller, self._requests, self._requests_of_address)

    def charge_message(self, caller: Caller) -> None:
        """Charge the caller for a websocket message that is no operation, or was rate-limited.

        Raises RateLimited.
        """
        _charge(caller, self._messages, self._messages_of_address)

    def charge_heartbeats(self, caller: Caller, count: int) -> None:
        """Charge the caller for heartbeats. Raises RateLimited."""
        self._heartbeats.charge(caller.rate_key, count)

    def charge_registration(self, caller: Caller) -> None:
        """Charge the caller for a registration. Raises RateLimited."""
        self._registrations.charge(caller.rate_key)

    def charge_rotation(self, caller: Caller) -> None:
        """Charge the caller for a rotation of its own token. Raises RateLimited."""
        self._rotations.charge(caller.rate_key)

    @contextmanager
    def hold_connection(self) -> Iterator[None]:
        """Count a connection during the block. Raises RateLimited at the limit."""
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
        """Count a subscription of the caller during the block. Raises RateLimited at the limit."""
        key = caller.rate_key
        if self._subscriptions[key] >= self._max_subscriptions:
            raise _make_limit_error(
                f"at most {self._max_subscriptions} subscriptions of one caller"
            )
        self._subscriptions[key] += 1
        try:
            yield
        finally:
            self._subscriptions[key] -= 1
            if not self._subscriptions[key]:
                del self._subscriptions[key]


def _charge(caller: Caller, by_identity: RateLimiter, by_address: RateLimiter) -> None:
    if caller.identity is not ANONYMOUS:
        by_identity.charge(caller.identity.name)
    by_address.charge(caller.address or "")


def _make_limiter(name: str, per_second: float) -> RateLimiter:
    return RateLimiter(name, per_second=per_second, burst=per_second * _BURST_SECONDS)


def _make_limit_error(message: str) -> RateLimited:
    return RateLimited(message, retryAfterSeconds=RETRY_AFTER_SECONDS)
