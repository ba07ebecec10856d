"""Subscriptions to status changes: none lost, none repeated, all in order."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text

from db.registry.node_filter import EVERY_NODE
from graph.live.change_feed import ChangeFeed
from graph.live.change_stream import follow_changes
from graph.live.stream_events import ResyncRequired, StatusChanged, StatusEvent
from tests.support.api import CHANGES, DEREGISTER, MAINTENANCE, beat, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import Client, connect
from tests.support.waiting import wait_until


async def next_event(client: Client) -> dict[str, Any]:
    message = await client.receive()
    assert message["type"] == "next", message
    event: dict[str, Any] = message["payload"]["data"]["nodeStatusChanges"]
    return event


async def next_revisions(client: Client, count: int) -> list[int]:
    """Return the revisions of the next changes, without bookmarks."""
    revisions: list[int] = []
    while len(revisions) < count:
        event = await next_event(client)
        if event["__typename"] == "NodeStatusChanged":
            revisions.append(int(event["change"]["revision"]))
    return revisions


def get_revision(event: StatusEvent) -> int:
    assert isinstance(event, StatusChanged)
    return event.change.revision


async def wait_for_subscribers(feed: ChangeFeed, subscribers: int = 1) -> None:
    """Wait until the feed has this many subscribers."""
    await wait_until(lambda: feed.subscriber_count >= subscribers)


async def make_changes(server: LiveServer, node_id: str, count: int, *, begin: int = 0) -> None:
    """Change a registered node's status this many times, by heartbeats numbered from `begin`."""
    for sequence in range(begin, begin + count):
        status = "ONLINE" if sequence % 2 else "DEGRADED"
        await beat(server, node_id, sequence, status=status)


async def test_a_change_is_delivered_with_the_current_node(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES)
        await wait_for_subscribers(server.services.change_feed)
        await register(server, "a", profiles=[{"name": "p", "type": "LLM", "config": {}}])
        event = await next_event(client)
    assert event == {
        "__typename": "NodeStatusChanged",
        "change": {
            "revision": "3",
            "nodeId": "a",
            "previousStatus": None,
            "status": "ONLINE",
            "reason": "REGISTERED",
            "note": None,
            "actor": "system/anonymous",
        },
        "node": {"nodeId": "a", "status": "ONLINE", "profiles": [{"name": "p"}]},
    }


async def test_a_removal_is_delivered_without_the_node(server: LiveServer) -> None:
    await register(server, "a", labels=["mine"])
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES, filter={"labels": {"all": ["mine"]}})
        await wait_for_subscribers(server.services.change_feed)
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        event = await next_event(client)
    assert event["change"]["reason"] == "DEREGISTERED"
    assert event["node"] is None


async def test_missed_changes_are_replayed_before_live_ones(server: LiveServer) -> None:
    await register(server, "a")
    await make_changes(server, "a", 4)
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES, after="4")
        assert await next_revisions(client, 3) == [5, 6, 7]
        await beat(server, "a", 99, status="DEGRADED")
        assert await next_revisions(client, 1) == [8]


async def test_no_change_is_lost_or_repeated_where_replay_and_live_meet(server: LiveServer) -> None:
    await register(server, "a")
    changes = asyncio.create_task(make_changes(server, "a", 60))
    async with connect(server.websocket_url) as client:
        for number in range(12):
            await client.subscribe(str(number), CHANGES, after="0")
            await asyncio.sleep(0.01)
        await changes
        revisions_by_operation: dict[str, list[int]] = {str(number): [] for number in range(12)}
        while any(len(revisions) < 63 for revisions in revisions_by_operation.values()):
            message = await client.receive()
            change = message["payload"]["data"]["nodeStatusChanges"].get("change")
            if change is not None:
                revisions_by_operation[message["id"]].append(int(change["revision"]))
    assert all(revisions == list(range(1, 64)) for revisions in revisions_by_operation.values())


async def test_a_filter_lets_only_its_nodes_through(server: LiveServer) -> None:
    await register(server, "in", labels=["gpu"])
    await register(server, "out")
    node_filter = {"labels": {"any": ["gpu"]}, "statuses": ["DEGRADED"]}
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES, filter=node_filter)
        await wait_for_subscribers(server.services.change_feed)
        await make_changes(server, "out", 3)
        await make_changes(server, "in", 3)
        events = [await next_event(client) for _ in range(2)]
    assert [event["change"]["nodeId"] for event in events] == ["in", "in"]
    assert [event["change"]["status"] for event in events] == ["DEGRADED", "DEGRADED"]


async def test_an_idle_subscriber_gets_a_bookmark(start_server: StartServer) -> None:
    async with (
        start_server(bookmark_interval_seconds=0.05) as server,
        connect(server.websocket_url) as client,
    ):
        await client.subscribe("1", CHANGES)
        assert await next_event(client) == {"__typename": "Bookmark", "revision": "2"}


async def test_a_bookmark_advances_past_changes_that_the_filter_hides(
    start_server: StartServer,
) -> None:
    async with (
        start_server(bookmark_interval_seconds=0.05) as server,
        connect(server.websocket_url) as client,
    ):
        await client.subscribe("1", CHANGES, filter={"nodeIds": ["nobody"]})
        await register(server, "a")
        async with asyncio.timeout(10):
            while (await next_event(client)) != {"__typename": "Bookmark", "revision": "3"}:
                pass


async def test_a_revision_that_the_log_no_longer_holds_requires_a_resync(
    server: LiveServer,
) -> None:
    await register(server, "a")
    async with server.services.database.write() as session:
        await session.execute(text("DELETE FROM status_changes WHERE revision <= 2"))
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES, after="1")
        event = await next_event(client)
        assert event["__typename"] == "ResyncRequired"
        assert event["revision"] == "3"
        assert await client.receive() == {"id": "1", "type": "complete"}
        await client.subscribe("2", CHANGES, after="2")
        assert await next_revisions(client, 1) == [3]


async def test_a_subscriber_that_is_too_slow_gets_a_resync(
    start_server: StartServer,
) -> None:
    async with start_server(subscriber_max_lag=3) as server:
        feed, database = server.services.change_feed, server.services.database
        await register(server, "a")
        await wait_for_revision(server, 3)
        async with aclosing(
            await follow_changes(feed, database, EVERY_NODE, after=3, bookmark_seconds=60)
        ) as events:
            await make_changes(server, "a", 2)
            await wait_for_revision(server, 5)
            assert [get_revision(event) for event in await anext(events)] == [4]
            await make_changes(server, "a", 4, begin=2)
            await wait_for_revision(server, 9)
            resync = ResyncRequired(9, "the subscriber was too slow")
            assert await anext(events) == [resync]
            with pytest.raises(StopAsyncIteration):
                await anext(events)


async def test_two_servers_deliver_the_changes_of_both_in_the_same_order(
    start_server: StartServer,
) -> None:
    async with (
        start_server() as server_1,
        start_server() as server_2,
        connect(server_1.websocket_url) as first,
        connect(server_2.websocket_url) as second,
    ):
        await first.subscribe("1", CHANGES)
        await second.subscribe("1", CHANGES)
        await wait_for_subscribers(server_1.services.change_feed)
        await wait_for_subscribers(server_2.services.change_feed)
        await register(server_1, "a")
        await register(server_2, "b")
        await asyncio.gather(make_changes(server_1, "a", 20), make_changes(server_2, "b", 20))
        expected = list(range(3, 45))
        assert await next_revisions(first, 42) == expected
        assert await next_revisions(second, 42) == expected


async def test_a_lost_listening_connection_costs_no_event(server: LiveServer) -> None:
    await register(server, "a")
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", CHANGES)
        await wait_for_subscribers(server.services.change_feed)
        for number in range(5):
            async with server.services.database.write() as session:
                await session.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'node-registry-listen'"
                        " AND datname = current_database()"
                    )
                )
            status = "ONLINE" if number % 2 else "DEGRADED"
            await beat(server, "a", number, status=status)
        assert await next_revisions(client, 5) == [4, 5, 6, 7, 8]


async def test_a_lost_notification_loses_no_event(start_server: StartServer) -> None:
    async with (
        start_server(listen_check_seconds=0.05) as server,
        connect(server.websocket_url) as client,
    ):
        await client.subscribe("1", CHANGES)
        await wait_for_subscribers(server.services.change_feed)
        async with server.services.database.write() as session:
            await session.execute(
                text(
                    "WITH state AS (UPDATE registry_state SET revision = 3 RETURNING revision)"
                    " INSERT INTO status_changes"
                    " SELECT revision, (SELECT min(id::text)::uuid FROM nodes), 'offline',"
                    " 'offline', 'seeded', NULL, 'test', now() FROM state"
                )
            )
        assert await next_revisions(client, 1) == [3]


async def test_subscribers_hold_no_database_connection(start_server: StartServer) -> None:
    async with (
        start_server(sweep_interval_seconds=3600) as server,
        connect(server.websocket_url) as client,
    ):
        for number in range(60):
            await client.subscribe(str(number), CHANGES)
        await wait_for_subscribers(server.services.change_feed, 60)
        await wait_until(lambda: not server.services.database.count_connections_in_use())
        await server.execute(MAINTENANCE, input={"nodeId": "node-2-macbook-m4max", "enabled": True})
        ids = {(await client.receive())["id"] for _ in range(60)}
    assert len(ids) == 60
