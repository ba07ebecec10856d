"""The heartbeat pace, announced to its followers between heartbeats."""

from tests.support.api import DEREGISTER, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import Client, connect
from tests.support.waiting import wait_until

PACE = "subscription { heartbeatPace { intervalSeconds } }"


async def read_pace(client: Client) -> float:
    message = await client.receive()
    seconds: float = message["payload"]["data"]["heartbeatPace"]["intervalSeconds"]
    return seconds


async def test_followers_receive_the_pace_and_then_its_changes(
    start_server: StartServer,
) -> None:
    # The fleet may send one heartbeat in five seconds, so the pace is five seconds for each node.
    slow = {"heartbeat_min_interval_seconds": 1, "heartbeat_target_rate": 0.2}
    async with start_server(sweep_interval_seconds=3600, **slow) as server:
        sweep = server.services.sweeper.sweep
        for number in range(4):
            await register(server, f"node-{number}")
        await sweep()
        async with connect(server.websocket_url) as first, connect(server.websocket_url) as second:
            for client in (first, second):
                await client.subscribe("1", PACE)
                assert await read_pace(client) == 20
            await server.execute(DEREGISTER, input={"nodeId": "node-0"})
            await sweep()  # 15 seconds: not announced
            await server.execute(DEREGISTER, input={"nodeId": "node-1"})
            await sweep()
            for client in (first, second):
                assert await read_pace(client) == 10
            metrics = (await server.http.get("/metrics")).text
            assert 'node_registry_subscribers{stream="pace"} 2.0' in metrics
        await wait_until(lambda: not server.services.sweeper.pace.follower_count)


async def test_the_pace_is_known_before_the_first_change(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", PACE)
        assert await read_pace(client) == server.services.settings.heartbeat_min_interval_seconds
