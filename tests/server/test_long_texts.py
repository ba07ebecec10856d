"""Texts from outside, longer than any place that they reach, change nothing for others."""

import asyncio

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from graph.auth import rate_sync
from graph.core.errors import MAX_MESSAGE_LENGTH
from tests.support.api import wait_until_connected
from tests.support.item_failures import count_item_failures
from tests.support.live_server import LiveServer, StartServer

MAX_RESPONSE_BYTES = 4 * MAX_MESSAGE_LENGTH


@pytest.mark.parametrize("length", [1, 300, 301, 8100, 30_000])
async def test_a_forwarded_address_of_any_length_leaves_the_rates_shared(
    length: int, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.01)
    failures = count_item_failures("rate_sync")
    options = {"auth": "required", "failed_logins_per_minute": 3}
    async with start_server(**options) as server, start_server(**options) as other:
        await wait_until_connected(other)
        headers = {"authorization": "Bearer x", "x-forwarded-for": "x" * length}
        for _ in range(3):
            assert (await server.http.post("/graphql", headers=headers)).status_code == 401
        async with asyncio.timeout(10):
            while (await other.http.post("/graphql", headers=headers)).status_code != 429:
                await asyncio.sleep(0.01)
        assert (await server.http.get("/health")).status_code == 200
    assert count_item_failures("rate_sync") == failures


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-id": "x" * 30_000},
        {"host": "x" * 30_000},
        {"host": "x" * 30_000, "authorization": f"Bearer {'x' * 30_000}"},
        {"authorization": "x" * 30_000},
        {"authorization": "Bearer eyJ" + "x" * 10_000 + "." * 5000},
        {"content-type": "x" * 30_000},
        {"accept": "x" * 30_000},
        {"traceparent": "x" * 30_000},
        {"content-length": "9" * 30_000},
    ],
    ids="+".join,
)
async def test_a_long_header_gets_a_short_answer(
    headers: dict[str, str], server: LiveServer
) -> None:
    try:
        response = await server.http.post("/graphql", headers=headers, json={"query": "{a}"})
    except httpx.TransportError:
        pass  # cut
    else:
        assert response.status_code < 500
        assert len(response.content) + len(str(response.headers)) < MAX_RESPONSE_BYTES
    assert (await server.http.get("/health")).status_code == 200


async def test_a_page_of_a_long_origin_is_rejected_by_a_short_message(server: LiveServer) -> None:
    origin = Origin(f"https://{'x' * 8000}")
    with pytest.raises(InvalidStatus) as rejected:
        await connect(server.websocket_url, origin=origin, proxy=None)
    assert rejected.value.response.status_code == 403
    assert len(rejected.value.response.body) < MAX_RESPONSE_BYTES


HOSTILE = ["x" * 30_000, "\0", "a\0b" * 3000, "\u202e" * 3000, "é" * 9000, "😀" * 9000]
QUERIES = [
    "query Q($x: String!) { node(nodeId: $x) { id } }",
    "query Q($x: String!) { nodes(first: 1, after: $x) { edges { cursor } } }",
    "query Q($x: String!) { auditLog(first: 1, after: $x) { edges { cursor } } }",
    "query Q($x: String!) { auditLog(first: 1, filter: {actor: $x}) { edges { cursor } } }",
    "mutation M($x: String!) { revokeToken(input: {id: $x}) { token { id } } }",
    "mutation M($x: String!) { deregisterNode(input: {nodeId: $x}) { revision } }",
    "query Q($x: String!) { availableNodes(require: {model: $x}) { revision } }",
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: f"{value[:1]!r}x{len(value)}")
@pytest.mark.parametrize("query", QUERIES)
async def test_a_hostile_text_is_no_internal_error(
    query: str, value: str, shared_server: LiveServer
) -> None:
    body = await shared_server.post(query, x=value)
    for error in body.get("errors", []):
        assert error["extensions"]["code"] != "INTERNAL", error
        assert len(str(error)) < MAX_RESPONSE_BYTES
