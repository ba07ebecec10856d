"""The pace of heartbeats, told between two of them to all who follow it."""

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.pace import NEWS, HeartbeatPace, Pace
from tests.support.live_server import LiveServer, StartServer
from tests.support.api import DEREGISTER, register
from tests.support.transport_ws import Client, connect

PACE = "subscription { heartbeatPace { intervalSeconds } }"


async def told(client: Client) -> float:
    message = await client.receive()
    seconds: float = message["payload"]["data"]["heartbeatPace"]["intervalSeconds"]
    return seconds


async def test_agents_are_told_the_pace_and_then_that_it_has_changed(
    start_server: StartServer,
) -> None:
    # One heartbeat in five seconds, of all nodes together: so the pace is five seconds a node.
    slow = {"heartbeat_min_interval_seconds": 1, "heartbeat_target_rate": 0.2}
    async with start_server(sweep_interval_seconds=3600, **slow) as server:
        sweep = server.services.pacemaker.sweep
        for number in range(4):
            await register(server, f"node-{number}")
        await sweep()
        async with connect(server.websocket_url) as one, connect(server.websocket_url) as other:
            for client in (one, other):
                await client.subscribe("1", PACE)
                assert await told(client) == 20
            await server.execute(DEREGISTER, input={"nodeId": "node-0"})
            await sweep()  # 15 seconds: no news
            await server.execute(DEREGISTER, input={"nodeId": "node-1"})
            await sweep()
            for client in (one, other):
                assert await told(client) == 10
            metrics = (await server.http.get("/metrics")).text
            assert 'node_registry_subscribers{stream="pace"} 2.0' in metrics
        async with asyncio.timeout(10):
            while server.services.pacemaker.pace.followers:
                await asyncio.sleep(0.005)


async def test_one_object_is_told_to_all_so_that_it_is_executed_once() -> None:
    pace = Pace(10)
    async with aclosing(pace.follow()) as one, aclosing(pace.follow()) as other:
        assert await anext(one) == await anext(other)
        pace.learn(20)
        assert (await anext(one))[0] is (await anext(other))[0]


async def test_a_follower_that_is_too_slow_is_told_the_last_alone() -> None:
    pace = Pace(10)
    async with aclosing(pace.follow()) as follower:
        await anext(follower)
        for seconds in (20, 40, 80):
            pace.learn(seconds)
        assert await anext(follower) == [HeartbeatPace(interval_seconds=80)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(follower)


@given(st.lists(st.floats(1, 1e5), min_size=1))
async def test_what_was_told_is_never_further_from_the_pace_than_what_is_no_news(
    paces: list[float],
) -> None:
    pace = Pace(10)
    for seconds in paces:
        pace.learn(seconds)
    async with aclosing(pace.follow()) as follower:
        [last] = await anext(follower)
    assert 1 / NEWS <= last.interval_seconds / paces[-1] <= NEWS


async def test_the_pace_is_known_before_anyone_asks(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", PACE)
        assert await told(client) == server.services.settings.heartbeat_min_interval_seconds
