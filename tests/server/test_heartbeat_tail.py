"""Live heartbeats of a node, from every server that receives them."""

import asyncio
from typing import Any

from db.registry import nodes
from graph.live.heartbeat_tail import MAX_WAITING, HeartbeatTail
from tests.support.api import beat, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.statements import record_statements
from tests.support.transport_ws import Client, connect
from tests.support.waiting import wait_until

HEARTBEATS = """
subscription Beats($nodeId: String!) {
  heartbeats(nodeId: $nodeId) { id nodeId status receivedAt metrics { cpuPercent } }
}
"""


async def next_heartbeat(client: Client) -> dict[str, Any]:
    message = await client.receive()
    assert message["type"] == "next", message
    heartbeat: dict[str, Any] = message["payload"]["data"]["heartbeats"]
    return heartbeat


async def wait_for_subscribers(server: LiveServer, subscribers: int = 1) -> None:
    """Wait until the heartbeat tail has this many subscribers."""
    await wait_until(lambda: server.services.heartbeat_tail.subscriber_count >= subscribers)


async def test_new_heartbeats_arrive_in_order(start_server: StartServer) -> None:
    async with (
        start_server(heartbeat_stream_seconds=0.02) as server,
        connect(server.websocket_url) as client,
    ):
        await register(server, "a")
        await register(server, "b")
        await beat(server, "a", 1, metrics={"cpuPercent": 1})
        await client.subscribe("1", HEARTBEATS, nodeId="a")
        await wait_for_subscribers(server)
        for sequence in range(2, 6):
            await beat(server, "a", sequence, metrics={"cpuPercent": sequence})
            await beat(server, "b", sequence)
        received = [await next_heartbeat(client) for _ in range(4)]
    assert [heartbeat["metrics"]["cpuPercent"] for heartbeat in received] == [2, 3, 4, 5]
    assert {heartbeat["nodeId"] for heartbeat in received} == {"a"}


async def test_heartbeats_of_another_server_arrive_too(start_server: StartServer) -> None:
    fast = {"heartbeat_stream_seconds": 0.02}
    async with start_server(**fast) as server_1, start_server(**fast) as server_2:
        await register(server_1, "a")
        async with connect(server_1.websocket_url) as client:
            await client.subscribe("1", HEARTBEATS, nodeId="a")
            await wait_for_subscribers(server_1)
            payload = await beat(server_2, "a", 1)
            assert (await next_heartbeat(client))["receivedAt"] == payload["receivedAt"]


async def test_a_slow_reader_misses_the_oldest_heartbeats(server: LiveServer) -> None:
    await register(server, "a")
    async with server.services.database.read() as session:
        node = await nodes.find_node(session, "a")
    assert node is not None
    tail = HeartbeatTail(server.services.database, interval_seconds=0.01)
    with tail.subscribe(node.id, 0) as subscriber:
        running = asyncio.create_task(tail.run())
        for sequence in range(MAX_WAITING + 5):
            await beat(server, "a", sequence, metrics={"cpuPercent": sequence})
        await wait_until(
            lambda: subscriber.waiting and subscriber.waiting[-1].metrics["cpu_percent"] == 104
        )
        running.cancel()
        assert [h.metrics["cpu_percent"] for h in subscriber.waiting] == list(range(5, 105))


async def test_an_unknown_node_is_rejected(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", HEARTBEATS, nodeId="nobody")
        message = await client.receive()
    assert message["type"] == "error"
    assert message["payload"][0]["extensions"]["code"] == "NODE_NOT_FOUND"


async def test_the_tail_sends_no_statement_without_subscribers(start_server: StartServer) -> None:
    quiet = {"sweep_interval_seconds": 3600, "listen_check_seconds": 300}
    async with (
        start_server(heartbeat_stream_seconds=0.01, **quiet) as server,
        connect(server.websocket_url) as client,
    ):
        await register(server, "a")
        await wait_for_revision(server, 3)
        await client.subscribe("1", HEARTBEATS, nodeId="a")
        await wait_for_subscribers(server)
        with record_statements(server.services.database) as sent:
            await wait_until(lambda: sent)
        await client.send({"id": "1", "type": "complete"})
        await wait_until(lambda: not server.services.heartbeat_tail.subscriber_count)
        await asyncio.sleep(0.1)
        with record_statements(server.services.database) as sent:
            await asyncio.sleep(0.1)
        assert sent == []
