"""Several processes count together: what one let through, the others know soon."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL
from structlog.types import EventDict

from db.core import rate_channel
from db.core.database import Database
from graph.auth import rate_sync
from graph.auth.rate_limiter import MAX_CHARGE_SECONDS, RateLimiter
from graph.auth.rate_sync import INTERVAL_SECONDS, MAX_SENT_KEYS, MIN_SENT_FRACTION, RateSync
from graph.core.errors import RateLimited
from tests.support.waiting import wait_until

NOWHERE = Database(URL.create("postgresql+asyncpg", host="127.0.0.1", port=1))


class Process:
    """One of several; they have one clock."""

    now = 1000.0

    def __init__(self, per_second: float, burst: float) -> None:
        self.quota = RateLimiter(
            "requests", per_second=per_second, burst=burst, clock=lambda: Process.now
        )
        self.rates = RateSync(NOWHERE, [self.quota])

    def takes(self, key: str, amount: float = 1) -> bool:
        try:
            self.quota.charge(key, amount)
        except RateLimited:
            return False
        return True


def exchange(processes: list[Process], seconds: float = INTERVAL_SECONDS) -> None:
    told = [payload for process in processes for payload in process.rates.make_payloads(seconds)]
    for process in processes:
        for payload in told:
            process.rates.receive(payload)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=30),
    st.floats(1, 20),
    st.integers(2, 5),
)
def test_all_together_let_through_one_limit_and_what_they_could_within_a_second(
    seconds: list[list[int]], per_second: float, count: int
) -> None:
    """Each second each process is asked so often."""
    burst = 2 * per_second
    processes = [Process(per_second, burst) for _ in range(count)]
    taken = []
    for asked in seconds:
        passed = 0
        for process, times in zip(processes, asked, strict=False):
            passed += sum(process.takes("a") for _ in range(times))
        taken.append(passed)
        Process.now += INTERVAL_SECONDS
        exchange(processes)
    unknown = count * (burst + per_second * INTERVAL_SECONDS)
    untold = count * MIN_SENT_FRACTION * per_second
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            span = (last - first) * INTERVAL_SECONDS
            assert sum(taken[first : last + 1]) <= unknown + span * (per_second + untold) + 1e-6


def test_in_the_long_run_many_processes_let_through_hardly_more_than_one() -> None:
    processes = [Process(100, 200) for _ in range(8)]
    passed = 0
    for _ in range(60):
        for _ in range(10):
            passed += sum(process.takes("a") for process in processes for _ in range(15))
            Process.now += 0.1
        exchange(processes)
    assert 0.95 * 60 * 100 < passed < 1.4 * 60 * 100


def test_one_key_pays_for_no_other_and_what_is_far_from_its_limit_is_not_told() -> None:
    one, other = processes = [Process(100, 200) for _ in range(2)]
    for _ in range(200):
        one.takes("a")
    one.takes("b")
    [told] = one.rates.make_payloads(1)
    assert '"a"' in told
    assert '"b"' not in told
    assert one.rates.make_payloads(1) == []
    other.rates.receive(told)
    one.rates.receive(told)
    assert not other.takes("a")
    assert all(process.takes("b") for process in processes)


def test_what_is_told_is_bounded_and_fits_its_payloads() -> None:
    process = Process(1, 2)
    for number in range(2 * MAX_SENT_KEYS):
        process.takes(f"{number}-{'ü' * 50}")
    told = process.rates.make_payloads(1)
    assert all(len(payload.encode()) < rate_channel.MAX_PAYLOAD_BYTES + 100 for payload in told)
    assert sum(payload.count("requests") for payload in told) == MAX_SENT_KEYS
    assert process.rates.make_payloads(1) == []


async def test_while_the_database_is_away_each_counts_by_itself(
    monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.01)
    process = Process(10, 20)
    task = asyncio.create_task(process.rates.run())
    for _ in range(2):
        already = len(logged)
        process.takes("a", 10)
        await wait_until(lambda: len(logged) != already)  # noqa: B023  # it is called at once
    assert not process.takes("a")
    assert {event["event"] for event in logged} == {"rate_sync.unavailable"}
    task.cancel()


@pytest.mark.parametrize("payload", ["", "{", "[]", '["x", [["requests", "a", null]]]', '["x", 1]'])
def test_what_no_process_would_say_changes_nothing(payload: str, logged: list[EventDict]) -> None:
    process = Process(1, 1)
    process.rates.receive(payload)
    assert process.takes("a")
    assert [event["event"] for event in logged] == ["rate_sync.invalid_payload"]


def test_false_rates_neither_lift_a_limit_nor_shut_somebody_out_for_long() -> None:
    process = Process(1, 1)
    assert process.takes("a")
    process.rates.receive('["x", [["requests", "a", -1000]]]')
    assert not process.takes("a")
    process.rates.receive('["x", [["requests", "a", 1e300]]]')
    Process.now += MAX_CHARGE_SECONDS + 1
    assert process.takes("a")
