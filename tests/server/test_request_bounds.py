"""What a peer may send before it is known, over real sockets: more is rejected or cut."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from db.core.database import Database
from db.core.enums import Role
from graph.server.request_bounds import MAX_FIELDS, MAX_HEAD_BYTES
from tests.support.hostile_peers import (
    BODIES,
    CHUNKED,
    GET,
    HEADS,
    UPGRADE,
    WEBSOCKETS,
    Attack,
    attack,
)
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_token
from tests.support.transport_ws import open_websocket

pytestmark = pytest.mark.usefixtures("logged")

SECONDS = 20
OK = b"HTTP/1.1 200"
TOO_LARGE = b"HTTP/1.1 431"


@pytest.fixture
async def strict_server(start_server: StartServer) -> AsyncIterator[LiveServer]:
    """A server to which anonymous callers stay unknown."""
    async with start_server(auth="required") as server:
        yield server


async def exchange(server: LiveServer, start: bytes, endless: bytes = b"") -> bytes:
    """Send the start, and then the endless part for ever; return the answer until it is closed."""
    async with asyncio.timeout(SECONDS):
        return await attack(server.http.base_url.port or 0, Attack(start, endless))


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
async def test_an_endless_head_is_rejected(strict_server: LiveServer, data: Attack) -> None:
    answer = await exchange(strict_server, data.start, data.endless)
    # A peer that is still sending may be cut before it can read the answer.
    assert answer == b"" or answer.startswith(TOO_LARGE)


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
async def test_an_endless_request_of_an_unknown_peer_is_cut_after_its_response(
    strict_server: LiveServer, data: Attack
) -> None:
    answer = await exchange(strict_server, data.start, data.endless)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 401", TOO_LARGE))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (GET + b"x: y\r\n" * (MAX_FIELDS - 2) + b"Connection: close\r\n\r\n", OK),
        (GET + b"x: y\r\n" * MAX_FIELDS + b"\r\n", TOO_LARGE),
        (GET + b"Connection: close\r\nx: %s\r\n\r\n" % (b"y" * (MAX_HEAD_BYTES - 100)), OK),
        (GET + b"x: %s\r\n\r\n" % (b"y" * MAX_HEAD_BYTES), TOO_LARGE),
        (UPGRADE + b"x: y\r\n" * MAX_FIELDS + b"\r\n", TOO_LARGE),
    ],
    ids=["fields", "a field more", "bytes", "bytes more", "fields of a websocket"],
)
async def test_a_head_may_have_so_many_fields_and_bytes(
    strict_server: LiveServer, head: bytes, status: bytes
) -> None:
    assert (await exchange(strict_server, head)).startswith(status)


async def test_trailers_of_a_known_peer_are_limited_and_reach_no_handler(
    start_server: StartServer,
) -> None:
    body = b'{"query":"{ __typename }"}'
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    async with start_server() as server:
        head = CHUNKED.replace(b"Host: a", b"Host: 127.0.0.1\r\nConnection: close")
        answer = await exchange(server, head + chunks + b"Accept: text/plain\r\n\r\n")
        assert answer.startswith(OK)
        answer = await exchange(server, head + chunks, endless=b"x: y\r\n" * 500)
        assert answer == b"" or answer.startswith(TOO_LARGE)


@pytest.mark.parametrize("end_of_line", [b"\r\n", b"\n"], ids=["CRLF", "LF"])
async def test_pipelined_requests_are_answered_in_order(
    strict_server: LiveServer, end_of_line: bytes
) -> None:
    paths = [b"/health/live", b"/missing", b"/"] * 7
    requests = b"".join(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in paths)
    last = GET + b"Connection: close\r\n\r\n"
    answer = await exchange(strict_server, (requests + last).replace(b"\r\n", end_of_line))
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)]
    assert statuses in ([*([200, 404, 200] * 7), 200], [400])  # llhttp may reject a bare LF


async def test_a_flood_of_pipelined_requests_is_read_as_it_is_answered(
    strict_server: LiveServer,
) -> None:
    host, port = strict_server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write((GET + b"\r\n") * 200_000)
    async with asyncio.timeout(SECONDS):
        for _ in range(20):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(OK)
            await reader.readuntil(b"}")
        assert writer.transport.get_write_buffer_size() > 0
        response = await strict_server.http.get("/health/live")
    assert response.status_code == 200
    writer.transport.abort()


async def test_a_message_before_the_initialisation_is_limited_to_64_kb_and_later_to_a_body(
    strict_server: LiveServer, database: Database
) -> None:
    token = await create_token(database, Role.VIEWER)
    big = {"type": "ping", "payload": {"x": "y" * 70_000}}
    init = {"type": "connection_init", "payload": {"Authorization": f"Bearer {token.text}"}}
    async with open_websocket(strict_server.websocket_url) as client:
        await client.send(big)
        assert (await client.wait_for_close())[0] in {1006, 1009}
    async with open_websocket(strict_server.websocket_url) as client:
        await client.send(init)
        assert (await client.receive())["type"] == "connection_ack"
        await client.send(big)
        assert (await client.receive())["type"] == "pong"


@pytest.mark.parametrize("data", WEBSOCKETS.values(), ids=WEBSOCKETS)
async def test_an_unknown_peer_that_floods_a_websocket_is_cut_and_delays_nobody(
    start_server: StartServer, data: Attack
) -> None:
    async with start_server(auth="required", connection_init_seconds=1) as server:
        flood = asyncio.create_task(exchange(server, data.start, data.endless))
        while not flood.done():
            assert (await server.http.get("/health/live")).status_code == 200
        answer = await flood
    assert answer == b"" or answer.startswith(b"HTTP/1.1 101")
