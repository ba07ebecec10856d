"""The rules of liveness that need no database."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.enums import RegistryMode
from db.registry.liveness_rules import FleetState, LivenessRules, ProcessHeartbeats

BASE = datetime(2030, 1, 1, tzinfo=UTC)
RULES = LivenessRules(jitter=0)
OVERDUE, TTL = 15, 35


def time_after(seconds: float) -> datetime:
    return BASE + timedelta(seconds=seconds)


def make_process_heartbeats(
    newest: float | None, oldest: float | None, floor: float
) -> ProcessHeartbeats:
    return ProcessHeartbeats(
        None if newest is None else time_after(-newest),
        None if oldest is None else time_after(-oldest),
        time_after(-floor),
    )


@pytest.mark.parametrize(
    ("live_nodes", "stretch", "interval"),
    [(0, 1, 10), (10_000, 1, 10), (10_001, 1, 10.001), (100_000, 1, 100), (20_000, 2.5, 50)],
)
def test_the_interval_keeps_the_fleet_at_its_target_rate(
    live_nodes: int, stretch: float, interval: float
) -> None:
    rules = LivenessRules(live_nodes=live_nodes, stretch=stretch)
    assert rules.interval == pytest.approx(interval)


@given(st.floats(0, 1), st.integers(0, 10**6))
def test_jitter_lengthens_the_interval_by_at_most_its_fraction(
    jitter: float, live_nodes: int
) -> None:
    rules = LivenessRules(jitter=jitter, live_nodes=live_nodes)
    drawn = rules.draw_interval()
    assert rules.interval <= drawn <= rules.interval * (1 + jitter) * 1.000001


@pytest.mark.parametrize(
    ("heartbeats", "has_had_outage"),
    [
        (make_process_heartbeats(None, None, 1000), True),
        (make_process_heartbeats(6, 6, 1000), False),
        (make_process_heartbeats(6.001, 6.001, 1000), True),
        (make_process_heartbeats(-6, -6, 1000), False),
        (make_process_heartbeats(-6.001, -6.001, 1000), True),
        (make_process_heartbeats(1, 6, 1000), False),
        (make_process_heartbeats(1, 6.001, 1000), True),
        (make_process_heartbeats(1, 6.001, 2 * TTL), False),
        (make_process_heartbeats(1, 6.001, 2 * TTL + 0.001), True),
        (make_process_heartbeats(7, 8, 1), True),
    ],
    ids=[
        "the first process",
        "within the timeout",
        "a pause",
        "a step back of the clock",
        "a jump back of the clock",
        "two at work",
        "one of two is silent",
        "one of two is silent once more",
        "one of two is silent again much later",
        "both are silent once more",
    ],
)
def test_an_outage_is_detected_by_process_heartbeats(
    heartbeats: ProcessHeartbeats, *, has_had_outage: bool
) -> None:
    assert RULES.has_had_outage(BASE, heartbeats) is has_had_outage


def make_fleet_state(
    mode: RegistryMode, live: int, silent: int, for_seconds: float = 0
) -> FleetState:
    return FleetState(mode, "reason", time_after(-for_seconds), live, silent)


@given(live=st.integers(0, 1000), silent_fraction=st.floats(0, 1), age=st.floats(0, 1200))
def test_protected_mode_is_entered_and_left_at_its_thresholds(
    live: int, silent_fraction: float, age: float
) -> None:
    silent = round(live * silent_fraction)
    mode, reason = RULES.decide_mode(make_fleet_state(RegistryMode.NORMAL, live, silent, age), BASE)
    assert (mode is RegistryMode.PROTECTED) == (live >= 10 and silent > live / 2)
    assert (reason is not None) == (mode is RegistryMode.PROTECTED)
    next_mode, _ = RULES.decide_mode(
        make_fleet_state(RegistryMode.PROTECTED, live, silent, age), BASE
    )
    assert (next_mode is RegistryMode.PROTECTED) == (live >= 10 and silent > live / 4 and age < 600)


@given(live=st.integers(10, 1000))
def test_the_mode_does_not_alternate_at_the_threshold(live: int) -> None:
    threshold = live // 2 + 1
    mode = RegistryMode.NORMAL
    modes = []
    for silent in [threshold - 1, threshold, threshold - 1, threshold] * 3:
        mode, _ = RULES.decide_mode(make_fleet_state(mode, live, silent), BASE)
        modes.append(mode)
    assert modes == [RegistryMode.NORMAL, *[RegistryMode.PROTECTED] * 11]
