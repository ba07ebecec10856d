"""The open connections of a process, and the shares of those whose peers are not known yet.

A connection is known once a request on it was authenticated. Known connections are never closed to
make room. An address, or all together, that opens too many others loses the oldest of them.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from ipaddress import IPv6Address, ip_network
from typing import Any

import structlog

from graph.auth.request_source import parse_address

log = structlog.get_logger()

_IPV6_PREFIX = 64
"""Bits of an IPv6 address that count: a customer has all addresses behind them (RFC 6177)."""

_LOG_INTERVAL_SECONDS = 60.0
_CONNECTION = "node_registry.connection"


def _do_nothing() -> None:
    pass


class Connection:
    """An accepted connection; `on_known` is called once its peer is known."""

    __slots__ = ("_limits", "cut", "is_known", "network", "on_known")

    def __init__(self, limits: "ConnectionLimits", network: str, cut: Callable[[], None]) -> None:
        """Create a connection that `cut` closes at once."""
        self._limits = limits
        self.network = network
        self.cut = cut
        self.is_known = False
        self.on_known = _do_nothing

    def store_in(self, state: MutableMapping[str, Any]) -> None:
        """Store it for `mark_known`, in the state of a request's scope."""
        state[_CONNECTION] = self

    def mark_known(self) -> None:
        if not self.is_known:
            self.is_known = True
            self._limits.forget_unknown(self)
            self.on_known()


def mark_known(scope: Mapping[str, Any]) -> None:
    """Count the connection of an authenticated request as a known one from now on."""
    connection: Connection | None = scope.get("state", {}).get(_CONNECTION)
    if connection is not None:
        connection.mark_known()


class ConnectionLimits:
    """Limits connections to `capacity`, of which half may be unknown.

    Of one address, `max_per_address` may be unknown, and at most a quarter of the capacity.
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_per_address: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._max_unknown = max(1, capacity // 2)
        self._max_per_address = max(1, min(max_per_address, capacity // 4))
        self._clock = clock
        self._unknown: OrderedDict[Connection, None] = OrderedDict()
        self._unknown_of: dict[str, OrderedDict[Connection, None]] = {}
        self._logged_at = float("-inf")
        self.open = 0
        self.cut = 0

    def add(self, address: str, cut: Callable[[], None]) -> Connection:
        """Count a new connection; if they are too many, cut the oldest unknown one, maybe this."""
        connection = Connection(self, _find_network(address), cut)
        self.open += 1
        of_address = self._unknown_of.setdefault(connection.network, OrderedDict())
        of_address[connection] = self._unknown[connection] = None
        if len(of_address) > self._max_per_address:
            self._cut(next(iter(of_address)), address)
        elif len(self._unknown) > self._max_unknown or self.open > self._capacity:
            self._cut(next(iter(self._unknown)), address)
        return connection

    def remove(self, connection: Connection) -> None:
        """Count a connection no longer, because it is closed."""
        self.open -= 1
        self.forget_unknown(connection)
        # They refer to the protocol, which refers to this, and only the collector would free them.
        connection.cut = connection.on_known = _do_nothing

    def forget_unknown(self, connection: Connection) -> None:
        """Take the connection off the unknown ones, if it is among them."""
        if connection in self._unknown:
            del self._unknown[connection]
            of_address = self._unknown_of[connection.network]
            del of_address[connection]
            if not of_address:
                del self._unknown_of[connection.network]

    def _cut(self, connection: Connection, address: str) -> None:
        self.cut += 1
        if self._clock() >= self._logged_at + _LOG_INTERVAL_SECONDS:
            self._logged_at = self._clock()
            log.warning("connections.limited", address=address, open=self.open, cut=self.cut)
        self.forget_unknown(connection)
        connection.cut()


def _find_network(address: str) -> str:
    """Return the IPv4 address, or the network of an IPv6 address, which counts as one address."""
    parsed = parse_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, _IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)
