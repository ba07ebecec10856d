"""GraphQL over server-sent events, for clients behind proxies that break websockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.support import npm
from tests.support.api import CHANGES, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.waiting import wait_until

STREAM = {"accept": "text/event-stream"}
FOLLOW = "subscription { nodeStatusChanges { __typename } }"
SECONDS = 10


@asynccontextmanager
async def open_stream(
    server: LiveServer, query: str, accept: str = "text/event-stream", **variables: Any
) -> AsyncIterator[AsyncIterator[str]]:
    """Yield the blocks of a stream, each without the empty line at its end."""
    async with (
        asyncio.timeout(SECONDS),
        server.http.stream(
            "POST",
            "/graphql",
            headers={"accept": accept},
            json={"query": query, "variables": variables},
        ) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        async with aclosing(read_blocks(response)) as reader:
            yield reader


async def read_blocks(response: httpx.Response) -> Any:
    block = ""
    async for line in response.aiter_lines():
        if line:
            block += f"{line}\n"
        else:
            yield block
            block = ""


def parse_result(block: str) -> Any:
    event, data = block.splitlines()
    assert event == "event: next"
    return orjson.loads(data.removeprefix("data: "))


async def test_subscription_replays_changes_and_continues_live(server: LiveServer) -> None:
    await register(server, "a")
    async with open_stream(server, CHANGES, after="2") as events:
        change = parse_result(await anext(events))["data"]["nodeStatusChanges"]["change"]
        assert (change["revision"], change["nodeId"]) == ("3", "a")
        await beat(server, "a", 1, status="DEGRADED")
        change = parse_result(await anext(events))["data"]["nodeStatusChanges"]["change"]
        assert change["revision"] == "4"
    await wait_until(lambda: server.services.change_feed.subscriber_count == 0)


async def test_query_or_mutation_yields_one_result_and_completes(server: LiveServer) -> None:
    register_node = (
        'mutation { registerNode(input: {nodeId: "a", role: BACKUP, type: WORKER, bootId: "b"})'
        " { created } }"
    )
    for query, data in (
        ("{ __typename }", {"__typename": "Query"}),
        (register_node, {"registerNode": {"created": True}}),
    ):
        async with open_stream(server, query) as events:
            received = [block async for block in events]
        assert parse_result(received[0]) == {"data": data}
        assert received[1:] == ["event: complete\ndata: \n"]


@pytest.mark.parametrize(
    ("query", "variables", "code"),
    [
        ("{ nonsense }", {}, "BAD_INPUT"),
        ("{", {}, "BAD_INPUT"),
        ("subscription { nodeStatusChanges { nonsense } }", {}, "BAD_INPUT"),
        (CHANGES, {"after": "999"}, "BAD_INPUT"),
        (CHANGES, {"after": "x"}, "BAD_INPUT"),
        ('subscription { heartbeats(nodeId: "x") { id } }', {}, "NODE_NOT_FOUND"),
    ],
)
async def test_rejected_operation_yields_its_error_in_the_stream(
    server: LiveServer, query: str, variables: dict[str, Any], code: str
) -> None:
    async with open_stream(server, query, **variables) as events:
        received = [block async for block in events]
    [error] = parse_result(received[0])["errors"]
    assert error["extensions"]["code"] == code
    assert received[1:] == ["event: complete\ndata: \n"]


@pytest.mark.parametrize(
    ("method", "options", "status"),
    [
        ("POST", {"content": "{"}, 415),
        ("POST", {"json": [1]}, 400),
        ("GET", {"params": {"query": "mutation { x }"}}, 405),
        ("PUT", {"json": {"query": "{ __typename }"}}, 405),
    ],
)
async def test_malformed_request_is_rejected_by_http_status(
    server: LiveServer, method: str, options: dict[str, Any], status: int
) -> None:
    response = await server.http.request(method, "/graphql", headers=STREAM, **options)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("application/json")
    assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_browser_subscribes_by_get(server: LiveServer) -> None:
    async with (
        asyncio.timeout(SECONDS),
        server.http.stream("GET", "/graphql", headers=STREAM, params={"query": FOLLOW}) as response,
    ):
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        assert response.status_code == 200


async def test_only_a_client_that_prefers_a_stream_gets_one(server: LiveServer) -> None:
    for accept in ("*/*", "application/json", "text/event-stream;q=0.1, application/json"):
        response = await server.http.post(
            "/graphql", headers={"accept": accept}, json={"query": FOLLOW}
        )
        assert response.status_code == 400
        assert "text/event-stream" in response.json()["errors"][0]["message"]
    async with open_stream(server, "{ __typename }", "application/json;q=0.5, text/event-stream"):
        pass


async def test_idle_stream_is_kept_alive_by_comments(start_server: StartServer) -> None:
    async with (
        start_server(keepalive_seconds=0.05) as server,
        open_stream(server, FOLLOW) as events,
    ):
        assert [await anext(events) for _ in range(2)] == [":\n", ":\n"]


async def test_client_that_disconnects_ends_its_subscription(server: LiveServer) -> None:
    async with open_stream(server, FOLLOW):
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
    await wait_until(lambda: server.services.change_feed.subscriber_count == 0)


async def test_stopping_server_ends_streams_without_a_last_event(
    start_server: StartServer,
) -> None:
    async with httpx.AsyncClient() as http:
        async with start_server(drain_seconds=0.1, shutdown_seconds=5) as server:
            stream = await http.send(
                http.build_request(
                    "POST", server.graphql_url, headers=STREAM, json={"query": FOLLOW}
                ),
                stream=True,
            )
            await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 4
        with pytest.raises(httpx.RemoteProtocolError):
            await stream.aread()


async def test_connection_over_the_limit_is_rejected_and_others_continue(
    start_server: StartServer,
) -> None:
    async with start_server(max_connections=1) as server, open_stream(server, FOLLOW) as events:
        await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
        rejected = await server.http.post("/graphql", headers=STREAM, json={"query": FOLLOW})
        assert rejected.status_code == 503
        assert rejected.headers["retry-after"] == "5"
        [error] = rejected.json()["errors"]
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert error["extensions"]["retryable"] is True
        await register(server, "a")
        assert parse_result(await anext(events))


async def test_subscriptions_of_one_caller_are_limited(start_server: StartServer) -> None:
    async with start_server(max_subscriptions_per_caller=1) as server:
        async with open_stream(server, FOLLOW):
            await wait_until(lambda: server.services.change_feed.subscriber_count == 1)
            async with open_stream(server, FOLLOW) as events:
                [error] = parse_result(await anext(events))["errors"]
            assert error["extensions"]["code"] == "RATE_LIMITED"
            assert error["extensions"]["retryAfterSeconds"] > 0
        await wait_until(lambda: server.services.change_feed.subscriber_count == 0)
        async with open_stream(server, FOLLOW):
            await wait_until(lambda: server.services.change_feed.subscriber_count == 1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm.install_package("graphql_sse", tmp_path_factory.mktemp("graphql_sse"))


async def test_reference_client_gets_results_events_and_rejections(
    client: Path, server: LiveServer
) -> None:
    await register(server, "a")
    url = server.graphql_url
    assert await npm.play_scenario(client, "query", url) == [
        {"data": {"registry": {"mode": "NORMAL"}}}
    ]
    results = await npm.play_scenario(client, "subscribe", url)
    revisions = [result["data"]["nodeStatusChanges"]["change"]["revision"] for result in results]
    assert revisions == ["1", "2"]
    [rejected] = await npm.play_scenario(client, "refused", url)
    assert rejected["errors"][0]["extensions"]["code"] == "BAD_INPUT"


async def test_reference_client_reconnects_to_a_restarted_server(
    client: Path, start_server: StartServer
) -> None:
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    async with start_server(http_port=port) as server:
        process = await asyncio.create_subprocess_exec(
            *("node", client / "client.mjs", "follow", server.graphql_url),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(30):
            assert [await process.stdout.readline() for _ in range(2)] == [b"1\n", b"2\n"]
    async with start_server(http_port=port), asyncio.timeout(30):
        assert await process.stdout.readline() == b"1\n"  # it does not resume, but it reconnects
    process.kill()
    await process.wait()
