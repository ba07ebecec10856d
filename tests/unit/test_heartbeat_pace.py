"""The heartbeat pace in one process: what followers receive, and which changes are announced."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.live.heartbeat_pace import MIN_CHANGE_FACTOR, HeartbeatPace
from graph.live.stream_events import PaceChanged


async def test_all_followers_receive_one_object_so_that_it_is_executed_once() -> None:
    pace = HeartbeatPace(10)
    async with aclosing(pace.follow()) as first, aclosing(pace.follow()) as second:
        assert await anext(first) == await anext(second)
        pace.update(20)
        assert (await anext(first))[0] is (await anext(second))[0]


async def test_a_slow_follower_receives_only_the_newest_pace() -> None:
    pace = HeartbeatPace(10)
    async with aclosing(pace.follow()) as follower:
        await anext(follower)
        for seconds in (20, 40, 80):
            pace.update(seconds)
        assert await anext(follower) == [PaceChanged(80)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(follower)


@given(st.lists(st.floats(1, 1e5), min_size=1))
async def test_the_announced_pace_is_never_further_from_the_pace_than_the_factor(
    paces: list[float],
) -> None:
    pace = HeartbeatPace(10)
    for seconds in paces:
        pace.update(seconds)
    async with aclosing(pace.follow()) as follower:
        [last] = await anext(follower)
    assert 1 / MIN_CHANGE_FACTOR <= last.interval_seconds / paces[-1] <= MIN_CHANGE_FACTOR
