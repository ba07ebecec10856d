"""When a run that ended is followed by another, and when not any more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.restart_limit import RestartLimit

STEADY = RestartLimit().steady_seconds
SHORT_RUNS = RestartLimit().max_short_runs


@pytest.mark.parametrize(("short_runs", "seconds"), [(1, 0.2), (5, 3.2), (6, 5), (100_000, 5)])
def test_the_delay_grows_with_short_runs_up_to_a_limit(short_runs: int, seconds: float) -> None:
    limit = RestartLimit(max_short_runs=200_000, short_runs=short_runs - 1)
    assert limit.record_run(0) == pytest.approx(seconds)


@given(st.lists(st.floats(0, STEADY, exclude_max=True), min_size=SHORT_RUNS, max_size=SHORT_RUNS))
def test_short_runs_in_a_row_are_bounded_however_they_ended(seconds: list[float]) -> None:
    limit = RestartLimit()
    delays = [limit.record_run(lasted) for lasted in seconds]
    assert None not in delays[:-1]
    assert delays[-1] is None


@given(st.lists(st.floats(0, 10 * STEADY), max_size=60))
def test_no_crash_loop_outlives_its_bound_and_steady_runs_are_restarted(
    seconds: list[float],
) -> None:
    limit = RestartLimit()
    for number, lasted in enumerate(seconds):
        delay = limit.record_run(lasted)
        recent = seconds[max(0, number + 1 - SHORT_RUNS) : number + 1]
        is_crash_loop = len(recent) == SHORT_RUNS and max(recent) < STEADY
        assert (delay is None) == is_crash_loop
        if delay is None:
            break
        assert 0 < delay <= limit.longest_delay_seconds


def test_a_crash_loop_leaves_a_dependency_some_seconds_to_return_and_ends_within_minutes() -> None:
    for lasted in (0.0, 0.9 * STEADY):
        limit, waited = RestartLimit(), 0.0
        while (delay := limit.record_run(lasted)) is not None:
            waited += lasted + delay
        assert 15 < waited < 10 * 60
