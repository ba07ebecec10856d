"""The heartbeat intervals of a fleet."""

from hypothesis import given
from hypothesis import strategies as st

from db.registry.liveness_rules import LivenessRules

PACES = st.builds(
    LivenessRules,
    min_interval=st.floats(0.01, 86400),
    grace=st.floats(0, 86400),
    target_rate=st.floats(0.1, 1e6),
    live_nodes=st.integers(0, 1_000_000),
)


@given(PACES)
def test_a_pace_keeps_the_fleet_at_its_rate_and_no_node_below_its_interval(
    pace: LivenessRules,
) -> None:
    assert pace.interval >= pace.min_interval
    assert pace.live_nodes / pace.interval <= pace.target_rate * (1 + 1e-9)
    assert pace.interval in (pace.min_interval, pace.live_nodes / pace.target_rate)


@given(PACES)
def test_a_promised_interval_is_at_most_a_tenth_longer_and_never_shorter(
    pace: LivenessRules,
) -> None:
    promised = [pace.draw_interval() for _ in range(10)]
    assert all(pace.interval <= interval <= pace.interval * 1.1 for interval in promised)
    assert len(set(promised)) > 1
