import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.pace import SLICE_SECONDS, Clock, Schedule, compute_retry_ceiling, draw_retry_delay

FAILURES = st.integers(1, 10_000)
INTERVALS = st.floats(0.0, 86_400.0)


@given(FAILURES, INTERVALS)
def test_retry_ceiling_grows_up_to_a_minute_or_the_interval(failures: int, interval: float) -> None:
    ceiling = compute_retry_ceiling(failures, interval)
    assert max(1.0, interval / 2) <= ceiling <= max(60.0, interval)
    assert ceiling <= compute_retry_ceiling(failures + 1, interval)


@given(FAILURES, INTERVALS, st.floats(0.0, 3600.0), st.floats(0.0, 1.0))
def test_retry_delay_is_at_least_the_one_requested_by_the_registry(
    failures: int, interval: float, requested: float, chance: float
) -> None:
    delay = draw_retry_delay(
        failures,
        interval_seconds=interval,
        at_least_seconds=requested,
        uniform=lambda low, high: low + chance * (high - low),
    )
    assert requested <= delay <= requested + compute_retry_ceiling(failures, interval)


def test_first_retries_of_one_outage_are_spread_over_half_an_interval() -> None:
    assert compute_retry_ceiling(1, interval_seconds=0.0) == 1.0
    assert compute_retry_ceiling(1, interval_seconds=10.0) == 5.0
    assert compute_retry_ceiling(1, interval_seconds=1000.0) == 500.0


async def test_wait_lasts_the_given_time() -> None:
    now = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    await Clock(now=lambda: now, sleep=sleep).wait(12.5)
    assert now == 112.5


async def test_wait_ends_when_the_machine_wakes_after_its_end() -> None:
    now, slices = 0.0, 0

    async def sleep(_seconds: float) -> None:
        nonlocal now, slices
        now += 3600.0
        slices += 1

    await Clock(now=lambda: now, sleep=sleep).wait(600.0)
    assert slices == 1
    assert SLICE_SECONDS < 600.0


async def test_the_default_clock_moves_forward() -> None:
    clock = Clock()
    before = clock.now()
    await clock.wait(0.01)
    assert 0.01 <= clock.now() - before < 5


QUARTERS = st.integers(4, 40_000).map(lambda quarters: quarters / 4)  # sums of them are exact


@given(QUARTERS, QUARTERS, QUARTERS, st.floats(0.0, 1.0))
def test_a_faster_pace_moves_the_heartbeat_forward_and_a_slower_one_does_not_delay_it(
    promised: float, before: float, after: float, chance: float
) -> None:
    clock = Clock(now=lambda: 100.0, uniform=lambda low, high: low + chance * (high - low))
    schedule = Schedule(clock)
    schedule.set_interval(promised)
    schedule.apply_pace(before)
    assert schedule.due == 100.0 + promised  # the first pace is not a change
    schedule.apply_pace(after)
    if after < min(before, promised):
        assert 100.0 <= schedule.due <= 100.0 + after
    else:
        assert schedule.due == 100.0 + promised


def test_a_fleet_that_receives_a_faster_pace_at_once_is_spread_over_it() -> None:
    clock = Clock(now=lambda: 0.0, uniform=random.Random(1).uniform)  # noqa: S311
    fleet = [Schedule(clock) for _ in range(10_000)]
    for schedule in fleet:
        schedule.set_interval(100.0)
        schedule.apply_pace(100.0)
        schedule.apply_pace(10.0)
    per_second = Counter(int(schedule.due) for schedule in fleet)
    assert per_second.keys() == set(range(10))
    assert max(per_second.values()) < 1.2 * 1000


async def test_a_wait_ends_earlier_when_the_pace_moves_its_end_forward() -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now == 3.0:
            schedule.apply_pace(10.0)

    clock = Clock(now=lambda: now, sleep=sleep, uniform=lambda _low, high: high / 2)
    schedule = Schedule(clock)
    schedule.set_interval(100.0)
    schedule.apply_pace(100.0)
    await schedule.wait()
    assert now == 8.0
