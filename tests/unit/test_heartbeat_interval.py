"""The heartbeat intervals of a fleet, drawn by the liveness rules."""

from hypothesis import given
from hypothesis import strategies as st

from db.registry.liveness_rules import LivenessRules

RULES = st.builds(
    LivenessRules,
    min_interval=st.floats(0.01, 86400),
    grace=st.floats(0, 86400),
    target_rate=st.floats(0.1, 1e6),
    live_nodes=st.integers(0, 1_000_000),
)


@given(RULES)
def test_the_interval_keeps_the_target_rate_and_the_minimum_interval(
    rules: LivenessRules,
) -> None:
    assert rules.interval >= rules.min_interval
    assert rules.live_nodes / rules.interval <= rules.target_rate * (1 + 1e-9)
    assert rules.interval in (rules.min_interval, rules.live_nodes / rules.target_rate)


@given(RULES)
def test_a_drawn_interval_is_at_most_a_tenth_longer_and_never_shorter(
    rules: LivenessRules,
) -> None:
    drawn = [rules.draw_interval() for _ in range(10)]
    assert all(rules.interval <= interval <= rules.interval * 1.1 for interval in drawn)
    assert len(set(drawn)) > 1
