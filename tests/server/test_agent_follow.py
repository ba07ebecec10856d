"""Status changes, followed across cuts, restarts and rejections: none skipped, none repeated."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from agent import websocket
from agent.errors import RequestRejectedError
from agent.follow import follow_available_nodes, follow_status_changes
from agent.replies import (
    AvailableNodesSnapshot,
    Bookmark,
    NodeBecameAvailable,
    NodeBecameUnavailable,
    NodeStatusChanged,
    ResyncRequired,
)
from tests.support.api import DEREGISTER, beat, register
from tests.support.followers import FAST_CLOCK, SECONDS, follow_changes, read_changes, read_event
from tests.support.live_server import LiveServer, StartServer
from tests.support.tcp_proxy import run_proxy
from tests.support.waiting import wait_until


async def make_changes(server: LiveServer, sequences: Iterable[int]) -> None:
    """Change the status of the node "a" once per sequence, by heartbeats."""
    for sequence in sequences:
        await beat(server, "a", sequence, status="ONLINE" if sequence % 2 else "DEGRADED")


def list_reader_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks of the libraries that only readers use; the registry shares the process."""
    return [
        task
        for task in asyncio.all_tasks()
        if any(name in repr(task.get_coro()) for name in ("Transport", "Connection.keepalive"))
    ]


async def test_change_is_delivered_with_the_current_node(server: LiveServer) -> None:
    async with follow_changes(server.graphql_url) as events:
        assert await read_event(events) == Bookmark(revision=2)
        await register(server, "a", labels=["gpu"])
        event = await read_event(events)
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        removal = await read_event(events)
    assert isinstance(event, NodeStatusChanged)
    assert event.node
    assert (event.revision, event.node.node_id, event.node.labels) == (3, "a", ["gpu"])
    assert (event.change.status, event.change.reason) == ("ONLINE", "REGISTERED")
    assert isinstance(removal, NodeStatusChanged)
    assert (removal.revision, removal.node) == (4, None)


async def test_only_changes_of_matching_nodes_are_delivered(server: LiveServer) -> None:
    async with follow_changes(
        server.graphql_url, node_filter={"labels": {"any": ["gpu"]}}
    ) as events:
        await read_event(events)
        await register(server, "out")
        await register(server, "in", labels=["gpu"])
        assert await read_changes(events, 1) == [4]


async def test_idle_stream_delivers_bookmarks_with_the_revision_to_resume_from(
    start_server: StartServer,
) -> None:
    async with (
        start_server(bookmark_interval_seconds=0.05) as server,
        follow_changes(server.graphql_url, node_filter={"nodeIds": ["nobody"]}) as events,
    ):
        assert await read_event(events) == Bookmark(revision=2)
        await register(server, "a")
        while (event := await read_event(events)) != Bookmark(revision=3):
            assert event == Bookmark(revision=2)
        assert await read_event(events) == Bookmark(revision=3)


async def test_no_change_after_the_first_bookmark_is_skipped(server: LiveServer) -> None:
    async with follow_changes(server.graphql_url) as events:
        assert await read_event(events) == Bookmark(revision=2)
        await register(server, "a")
        await make_changes(server, range(4))
        assert await read_changes(events, 5) == [3, 4, 5, 6, 7]


async def test_reader_resumes_where_its_socket_was_cut(server: LiveServer) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as proxy, follow_changes(proxy.url, after=0) as events:
        changes = asyncio.create_task(make_changes(server, range(60)))
        revisions: list[int] = []
        while len(revisions) < 63:
            revisions += await read_changes(events, 1)
            if revisions[-1] % 7 == 0:
                proxy.cut()
        await changes
    assert revisions == list(range(1, 64))
    assert proxy.connection_count > 3


async def test_reader_resumes_after_a_restart_of_the_registry(start_server: StartServer) -> None:
    async with start_server() as server:
        port = int(server.url.rpartition(":")[2])
        events = follow_status_changes(server.graphql_url, clock=FAST_CLOCK)
        await read_event(events)
        await register(server, "a")
        assert await read_changes(events, 1) == [3]
    async with aclosing(events), start_server() as other_server:
        await make_changes(other_server, range(2))
        waiting = asyncio.create_task(read_changes(events, 3))
        async with start_server(http_port=port) as server:
            await make_changes(server, range(2, 3))
            assert await waiting == [4, 5, 6]


async def test_resync_is_delivered_and_the_stream_continues_after_it(server: LiveServer) -> None:
    await register(server, "a")
    async with server.services.database.write() as session:
        await session.execute(text("DELETE FROM status_changes WHERE revision <= 2"))
    with capture_logs() as logs:
        async with follow_changes(server.graphql_url, after=1) as events:
            event = await read_event(events)
            await make_changes(server, range(2))
            assert await read_changes(events, 2) == [4, 5]
    assert isinstance(event, ResyncRequired)
    assert event.revision == 3
    assert "no longer reaches back" in event.reason
    assert not [entry for entry in logs if entry["event"].startswith("registry.")]


@pytest.mark.parametrize("arguments", [{"after": 999}, {"node_filter": {"statuses": ["NOPE"]}}])
async def test_invalid_arguments_raise_the_rejection(
    server: LiveServer, arguments: dict[str, Any]
) -> None:
    async with follow_changes(server.graphql_url, **arguments) as events:
        with pytest.raises(RequestRejectedError, match="BAD_INPUT"):
            await read_changes(events, 1)


async def test_reader_slower_than_the_pings_gets_every_change(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    await register(server, "a")
    await make_changes(server, range(40))
    async with run_proxy(server.url) as proxy, follow_changes(proxy.url, after=0) as events:
        assert await read_changes(events, 1) == [1]
        await asyncio.sleep(0.15)
        await make_changes(server, range(40, 41))
        assert await read_changes(events, 43) == list(range(2, 45))
    assert proxy.connection_count > 1


async def test_silently_dead_connection_is_detected_and_replaced(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    async with run_proxy(server.url) as proxy, follow_changes(proxy.url) as events:
        await read_event(events)
        await register(server, "a")
        assert await read_changes(events, 1) == [3]
        proxy.stall()
        await make_changes(server, range(2))
        assert await read_changes(events, 2) == [4, 5]
    assert proxy.connection_count == 2


async def test_aclose_closes_the_socket_and_leaves_no_task(server: LiveServer) -> None:
    async with run_proxy(server.url) as proxy:
        async with follow_changes(proxy.url) as events:
            await read_event(events)
            await register(server, "a")
            await read_changes(events, 1)
            assert list_reader_tasks()
        assert not list_reader_tasks()
        await wait_until(
            lambda: not (proxy.writers or server.services.change_feed.subscriber_count),
            seconds=SECONDS,
        )


async def test_aclose_waits_neither_for_a_dead_peer_nor_for_unread_events(
    server: LiveServer,
) -> None:
    await register(server, "a")
    await make_changes(server, range(40))
    async with run_proxy(server.url) as proxy:
        async with follow_changes(proxy.url, after=0) as events:
            assert await read_changes(events, 1) == [1]
            await asyncio.sleep(0.05)  # so that more has arrived than was read
            proxy.stall()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2
        assert not list_reader_tasks()


async def test_aclose_ends_a_reader_whose_socket_was_just_cut(server: LiveServer) -> None:
    async with run_proxy(server.url) as proxy:
        async with follow_changes(proxy.url, after=0) as events:
            assert await read_changes(events, 1) == [1]
            proxy.cut()
            await asyncio.sleep(0.05)
        assert not list_reader_tasks()
    assert proxy.connection_count == 1


async def test_snapshot_of_available_nodes_is_delivered_again_after_a_cut(
    server: LiveServer,
) -> None:
    await register(server, "a", labels=["mine"])
    requirements = {"labels": {"all": ["mine"]}}
    async with (
        run_proxy(server.url) as proxy,
        aclosing(
            follow_available_nodes(proxy.url, requirements=requirements, clock=FAST_CLOCK)
        ) as events,
        asyncio.timeout(SECONDS),
    ):
        first = await anext(events)
        assert isinstance(first, AvailableNodesSnapshot)
        assert [node.node_id for node in first.nodes] == ["a"]
        await register(server, "b", labels=["mine"])
        entered = await anext(events)
        assert isinstance(entered, NodeBecameAvailable)
        assert entered.node.node_id == "b"
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        left = await anext(events)
        assert isinstance(left, NodeBecameUnavailable)
        assert (left.node_id, left.reasons) == ("a", ["is no longer registered"])
        proxy.cut()
        second = await anext(events)
        assert isinstance(second, AvailableNodesSnapshot)
        assert [node.node_id for node in second.nodes] == ["b"]


async def test_invalid_requirements_raise_the_rejection(server: LiveServer) -> None:
    async with aclosing(
        follow_available_nodes(server.url, requirements={"maxCpuPercent": -1}, clock=FAST_CLOCK)
    ) as events:
        with pytest.raises(RequestRejectedError) as rejected:
            await anext(events)
    assert rejected.value.facts["field"] == "require.maxCpuPercent"
