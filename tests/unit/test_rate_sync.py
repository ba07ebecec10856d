"""Rate limits shared by processes: each tells the others what it has accepted."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL
from structlog.types import EventDict

from db.core import rate_channel
from db.core.database import Database
from db.core.errors import RateLimited
from graph.auth import rate_sync
from graph.auth.rate_limiter import MAX_CHARGE_SECONDS, RateLimiter
from graph.auth.rate_sync import INTERVAL_SECONDS, MAX_SENT_KEYS, MIN_SENT_FRACTION, RateSync
from tests.support.waiting import wait_until

UNREACHABLE = Database(URL.create("postgresql+asyncpg", host="127.0.0.1", port=1))


class Process:
    """A process with a rate limiter; all processes share one clock."""

    now = 1000.0

    def __init__(self, per_second: float, burst: float) -> None:
        self.limiter = RateLimiter(
            "requests", per_second=per_second, burst=burst, clock=lambda: Process.now
        )
        self.sync = RateSync(UNREACHABLE, [self.limiter])

    def try_charge(self, key: str, amount: float = 1) -> bool:
        try:
            self.limiter.charge(key, amount)
        except RateLimited:
            return False
        return True


def exchange(processes: list[Process], seconds: float = INTERVAL_SECONDS) -> None:
    payloads = [payload for process in processes for payload in process.sync.make_payloads(seconds)]
    for process in processes:
        for payload in payloads:
            process.sync.receive(payload)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), max_size=30),
    st.floats(1, 20),
    st.integers(2, 5),
)
def test_processes_together_accept_one_limit_plus_what_is_not_synced_yet(
    seconds: list[list[int]], per_second: float, count: int
) -> None:
    """`seconds` has the number of charges to each process in each second."""
    burst = 2 * per_second
    processes = [Process(per_second, burst) for _ in range(count)]
    accepted = []
    for attempts in seconds:
        accepted_in_second = 0
        for process, attempt_count in zip(processes, attempts, strict=False):
            accepted_in_second += sum(process.try_charge("a") for _ in range(attempt_count))
        accepted.append(accepted_in_second)
        Process.now += INTERVAL_SECONDS
        exchange(processes)
    unsynced = count * (burst + per_second * INTERVAL_SECONDS)
    unsent_rate = count * MIN_SENT_FRACTION * per_second
    for first in range(len(accepted)):
        for last in range(first, len(accepted)):
            span = (last - first) * INTERVAL_SECONDS
            assert (
                sum(accepted[first : last + 1])
                <= unsynced + span * (per_second + unsent_rate) + 1e-6
            )


def test_many_processes_accept_little_more_than_one_in_the_long_run() -> None:
    processes = [Process(100, 200) for _ in range(8)]
    accepted = 0
    for _ in range(60):
        for _ in range(10):
            accepted += sum(process.try_charge("a") for process in processes for _ in range(15))
            Process.now += 0.1
        exchange(processes)
    assert 0.95 * 60 * 100 < accepted < 1.4 * 60 * 100


def test_only_keys_near_their_limit_are_sent_and_keys_stay_independent() -> None:
    first, second = processes = [Process(100, 200) for _ in range(2)]
    for _ in range(200):
        first.try_charge("a")
    first.try_charge("b")
    [payload] = first.sync.make_payloads(1)
    assert '"a"' in payload
    assert '"b"' not in payload
    assert first.sync.make_payloads(1) == []
    second.sync.receive(payload)
    first.sync.receive(payload)
    assert not second.try_charge("a")
    assert all(process.try_charge("b") for process in processes)


def test_the_sent_keys_are_bounded_and_fit_their_payloads() -> None:
    process = Process(1, 2)
    for number in range(2 * MAX_SENT_KEYS):
        process.try_charge(f"{number}-{'ü' * 50}")
    payloads = process.sync.make_payloads(1)
    assert all(len(payload.encode()) < rate_channel.MAX_PAYLOAD_BYTES + 100 for payload in payloads)
    assert sum(payload.count("requests") for payload in payloads) == MAX_SENT_KEYS
    assert process.sync.make_payloads(1) == []


async def test_each_process_counts_alone_while_the_database_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.01)
    process = Process(10, 20)
    task = asyncio.create_task(process.sync.run())
    for _ in range(2):
        event_count = len(logged)
        process.try_charge("a", 10)
        await wait_until(lambda: len(logged) != event_count)  # noqa: B023  # it is called at once
    assert not process.try_charge("a")
    assert {event["event"] for event in logged} == {"rate_sync.unavailable"}
    task.cancel()


@pytest.mark.parametrize("payload", ["", "{", "[]", '["x", [["requests", "a", null]]]', '["x", 1]'])
def test_an_invalid_payload_changes_nothing(payload: str, logged: list[EventDict]) -> None:
    process = Process(1, 1)
    process.sync.receive(payload)
    assert process.try_charge("a")
    assert [event["event"] for event in logged] == ["rate_sync.invalid_payload"]


def test_forged_rates_neither_lift_a_limit_nor_block_a_key_for_long() -> None:
    process = Process(1, 1)
    assert process.try_charge("a")
    process.sync.receive('["x", [["requests", "a", -1000]]]')
    assert not process.try_charge("a")
    process.sync.receive('["x", [["requests", "a", 1e300]]]')
    Process.now += MAX_CHARGE_SECONDS + 1
    assert process.try_charge("a")
