"""Rate limits: which charges are accepted, and when the next one will be."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.errors import RateLimited
from graph.auth import rate_limiter
from graph.auth.rate_limiter import RateLimiter

LIMIT_NAME = "requests"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def count_accepted(limiter: RateLimiter, key: str, attempts: int) -> int:
    accepted = 0
    for _ in range(attempts):
        try:
            limiter.charge(key)
        except RateLimited:
            continue
        accepted += 1
    return accepted


def test_a_burst_is_accepted_and_then_the_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(LIMIT_NAME, per_second=10, burst=5, clock=clock)
    assert count_accepted(limiter, "a", 20) == 5
    clock.now += 0.2
    assert count_accepted(limiter, "a", 20) == 2
    clock.now += 3600
    assert count_accepted(limiter, "a", 20) == 5


def test_a_rejection_names_the_delay_after_which_a_charge_is_accepted() -> None:
    clock = Clock()
    limiter = RateLimiter(LIMIT_NAME, per_second=2, burst=3, clock=clock)
    count_accepted(limiter, "a", 3)
    with pytest.raises(RateLimited) as rejection:
        limiter.charge("a")
    wait = rejection.value.details["retryAfterSeconds"]
    assert isinstance(wait, float)
    assert 0 < wait <= 0.5
    clock.now += wait + 0.001
    limiter.charge("a")


def test_keys_have_independent_limits() -> None:
    limiter = RateLimiter(LIMIT_NAME, per_second=1, burst=2, clock=Clock())
    assert count_accepted(limiter, "a", 10) == 2
    assert count_accepted(limiter, "b", 10) == 2


def test_a_rejected_charge_costs_nothing() -> None:
    clock = Clock()
    limiter = RateLimiter(LIMIT_NAME, per_second=1, burst=1, clock=clock)
    count_accepted(limiter, "a", 100)
    clock.now += 1.001
    limiter.charge("a")


def test_a_charge_above_the_burst_is_accepted_once_and_delays_the_next() -> None:
    clock = Clock()
    limiter = RateLimiter(LIMIT_NAME, per_second=100, burst=50, clock=clock)
    limiter.charge("a", 1000)
    for seconds in (1, 5):
        clock.now += seconds
        with pytest.raises(RateLimited):
            limiter.charge("a", 1000)
    clock.now += 4.001
    limiter.charge("a", 1000)


def test_require_available_does_not_charge() -> None:
    clock = Clock()
    limiter = RateLimiter("failed logins", per_second=1, burst=2, clock=clock)
    for _ in range(10):
        limiter.require_available("a")
    limiter.charge("a")
    limiter.require_available("a")
    limiter.charge("a")
    with pytest.raises(RateLimited, match="failed logins"):
        limiter.require_available("a")
    clock.now += 1.001
    limiter.require_available("a")


def test_the_oldest_keys_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "MAX_KEYS", 10)
    limiter = RateLimiter(LIMIT_NAME, per_second=0.001, burst=1, clock=Clock())
    for number in range(20):
        limiter.charge(f"{number}")
    limiter.charge("0")
    with pytest.raises(RateLimited):
        limiter.charge("19")


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5)), max_size=60),
    st.floats(0.5, 20),
    st.integers(5, 20),
)
def test_no_time_span_accepts_more_than_burst_and_rate(
    attempts: list[tuple[float, int]], per_second: float, burst: int
) -> None:
    clock = Clock()
    limiter = RateLimiter(LIMIT_NAME, per_second=per_second, burst=burst, clock=clock)
    accepted = [(clock.now, 0)]
    for seconds, amount in attempts:
        clock.now += seconds
        try:
            limiter.charge("a", amount)
        except RateLimited:
            continue
        accepted.append((clock.now, amount))
    assert all(earlier <= later for (earlier, _), (later, _) in pairwise(accepted))
    for first in range(len(accepted)):
        for last in range(first, len(accepted)):
            span = accepted[last][0] - accepted[first][0]
            amount = sum(charge for _, charge in accepted[first : last + 1])
            assert amount <= burst + span * per_second + 1e-6
