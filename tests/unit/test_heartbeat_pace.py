"""The pace of heartbeats in one process: who is told of it, and what is no news."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.live.heartbeat_pace import MIN_CHANGE_FACTOR, HeartbeatPace
from graph.live.stream_events import PaceChanged


async def test_one_object_is_told_to_all_so_that_it_is_executed_once() -> None:
    pace = HeartbeatPace(10)
    async with aclosing(pace.follow()) as one, aclosing(pace.follow()) as other:
        assert await anext(one) == await anext(other)
        pace.update(20)
        assert (await anext(one))[0] is (await anext(other))[0]


async def test_a_follower_that_is_too_slow_is_told_the_last_alone() -> None:
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
async def test_what_was_told_is_never_further_from_the_pace_than_what_is_no_news(
    paces: list[float],
) -> None:
    pace = HeartbeatPace(10)
    for seconds in paces:
        pace.update(seconds)
    async with aclosing(pace.follow()) as follower:
        [last] = await anext(follower)
    assert 1 / MIN_CHANGE_FACTOR <= last.interval_seconds / paces[-1] <= MIN_CHANGE_FACTOR
