"""The shares of the connections whose peers are not known yet."""

from collections.abc import Callable
from functools import partial

import pytest
from structlog.typing import EventDict

from graph.auth.connection_limits import Connection, ConnectionLimits, mark_known

OpenConnection = Callable[..., Connection]


class Connections:
    """Connections to a process, and the numbers of those that were cut, in order."""

    def __init__(self, capacity: int, max_per_address: int = 1000) -> None:
        self.now = 0.0
        self.cut: list[int] = []
        self.limits = ConnectionLimits(
            capacity, max_per_address=max_per_address, clock=lambda: self.now
        )
        self._count = 0

    def open(self, address: str) -> Connection:
        number = self._count
        self._count += 1
        return self.limits.add(address, partial(self.cut.append, number))


@pytest.fixture(autouse=True)
def _logged(logged: list[EventDict]) -> None:
    """Collect the warnings of the limits."""


def test_the_oldest_unknown_connection_of_an_address_makes_room_for_the_next() -> None:
    connections = Connections(100, max_per_address=3)
    for _ in range(5):
        connections.open("10.0.0.1")
    connections.open("10.0.0.2")
    assert connections.cut == [0, 1]


def test_an_address_gets_a_quarter_of_the_capacity_at_most() -> None:
    connections = Connections(40)
    for _ in range(11):
        connections.open("10.0.0.1")
    assert connections.cut == [0]


def test_all_unknown_connections_get_half_of_the_capacity() -> None:
    connections = Connections(40)
    for number in range(21):
        connections.open(f"10.0.0.{number}")
    assert connections.cut == [0]


def test_known_connections_are_never_cut() -> None:
    connections = Connections(40)
    for number in range(40):
        connections.open(f"10.0.0.{number % 4}").mark_known()
    newcomers = [connections.open("10.0.1.1") for _ in range(3)]
    assert connections.cut == [40, 41, 42]
    for newcomer in newcomers:
        connections.limits.remove(newcomer)
    assert connections.limits.open == 40


def test_closed_and_known_connections_leave_their_share_to_others() -> None:
    connections = Connections(100, max_per_address=2)
    for _ in range(5):
        connections.limits.remove(connections.open("10.0.0.1"))
        connections.open("10.0.0.1").mark_known()
    assert connections.cut == []
    assert connections.limits.open == 5


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("2001:db8::1", "2001:db8::2:3:4", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_the_addresses_of_one_ipv6_network_share(first: str, second: str, *, is_same: bool) -> None:
    connections = Connections(100, max_per_address=1)
    connections.open(first)
    connections.open(second)
    assert connections.cut == ([0] if is_same else [])


def test_the_log_names_an_address_once_a_minute(logged: list[EventDict]) -> None:
    connections = Connections(100, max_per_address=1)
    for _ in range(50):
        connections.open("10.0.0.1")
    connections.now = 61
    connections.open("10.0.0.1")
    assert [(event["event"], event["cut"]) for event in logged] == [
        ("connections.limited", 1),
        ("connections.limited", 50),
    ]
    logged.clear()


def test_a_connection_becomes_known_once() -> None:
    calls: list[str] = []
    connection = Connections(10).open("10.0.0.1")
    connection.on_known = partial(calls.append, "known")
    scope: dict[str, dict[str, object]] = {"state": {}}
    connection.store_in(scope["state"])
    mark_known(scope)
    mark_known(scope)
    assert connection.is_known
    assert calls == ["known"]
    mark_known({})  # a request without a connection, as in a test of the app alone
