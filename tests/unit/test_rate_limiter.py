"""Rate limits: what is let through, and when more may come."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.auth import rate_limiter
from graph.auth.rate_limiter import RateLimiter
from graph.core.errors import RateLimited

WHAT = "requests"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def let_through(quota: RateLimiter, key: str, attempts: int) -> int:
    taken = 0
    for _ in range(attempts):
        try:
            quota.charge(key)
        except RateLimited:
            continue
        taken += 1
    return taken


def test_a_burst_is_let_through_then_the_rate() -> None:
    clock = Clock()
    limited = RateLimiter(WHAT, per_second=10, burst=5, clock=clock)
    assert let_through(limited, "a", 20) == 5
    clock.now += 0.2
    assert let_through(limited, "a", 20) == 2
    clock.now += 3600
    assert let_through(limited, "a", 20) == 5


def test_a_refusal_says_when_more_may_come_and_keeps_its_word() -> None:
    clock = Clock()
    limited = RateLimiter(WHAT, per_second=2, burst=3, clock=clock)
    let_through(limited, "a", 3)
    with pytest.raises(RateLimited) as refused:
        limited.charge("a")
    wait = refused.value.details["retryAfterSeconds"]
    assert isinstance(wait, float)
    assert 0 < wait <= 0.5
    clock.now += wait + 0.001
    limited.charge("a")


def test_one_key_uses_nothing_of_another() -> None:
    limited = RateLimiter(WHAT, per_second=1, burst=2, clock=Clock())
    assert let_through(limited, "a", 10) == 2
    assert let_through(limited, "b", 10) == 2


def test_what_is_refused_is_not_paid_for() -> None:
    clock = Clock()
    limited = RateLimiter(WHAT, per_second=1, burst=1, clock=clock)
    let_through(limited, "a", 100)
    clock.now += 1.001
    limited.charge("a")


def test_more_than_the_burst_is_let_through_once_and_paid_later() -> None:
    clock = Clock()
    limited = RateLimiter(WHAT, per_second=100, burst=50, clock=clock)
    limited.charge("a", 1000)
    for passed in (1, 5):
        clock.now += passed
        with pytest.raises(RateLimited):
            limited.charge("a", 1000)
    clock.now += 4.001
    limited.charge("a", 1000)


def test_whether_one_is_left_is_asked_without_taking_it() -> None:
    clock = Clock()
    limited = RateLimiter("failed logins", per_second=1, burst=2, clock=clock)
    for _ in range(10):
        limited.require_available("a")
    limited.charge("a")
    limited.require_available("a")
    limited.charge("a")
    with pytest.raises(RateLimited, match="failed logins"):
        limited.require_available("a")
    clock.now += 1.001
    limited.require_available("a")


def test_keys_are_forgotten_from_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "MAX_KEYS", 10)
    limited = RateLimiter(WHAT, per_second=0.001, burst=1, clock=Clock())
    for number in range(20):
        limited.charge(f"{number}")
    limited.charge("0")
    with pytest.raises(RateLimited):
        limited.charge("19")


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), max_size=60),
    st.floats(0.5, 20),
    st.integers(5, 20),
)
def test_no_span_of_time_lets_more_through_than_rate_and_burst(
    attempts: list[tuple[float, int]], per_second: float, burst: int
) -> None:
    clock = Clock()
    limited = RateLimiter(WHAT, per_second=per_second, burst=burst, clock=clock)
    taken = [(clock.now, 0)]
    for passed, amount in attempts:
        clock.now += passed
        try:
            limited.charge("a", amount)
        except RateLimited:
            continue
        taken.append((clock.now, amount))
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(taken))
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span = taken[last][0] - taken[first][0]
            amount = sum(each for _, each in taken[first : last + 1])
            assert amount <= burst + span * per_second + 1e-6
