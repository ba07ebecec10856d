"""Stalled readers: their connections are cut, and no other request is delayed."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.api import register
from tests.support.big_responses import make_big_query, make_request
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("logged")

SECONDS = 10


MANY_FIELDS = {"max_query_tokens": 10_000, "max_query_aliases": 1000}


@asynccontextmanager
async def open_plain_socket(server: LiveServer, sent: bytes = b"") -> AsyncIterator[socket.socket]:
    """Yield a socket with a small buffer from which only the test reads."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        plain.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(plain, (host, int(port)))
        await loop.sock_sendall(plain, sent)
        yield plain


async def wait_until_cut(plain: socket.socket) -> None:
    """Wait, without a read, until the server has reset the connection."""
    await wait_until(lambda: plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)


async def test_reader_that_stalls_on_a_big_response_is_cut_and_delays_nobody(
    start_server: StartServer,
) -> None:
    async with start_server(stalled_reader_seconds=0.1, **MANY_FIELDS) as server:
        await register(server, "a", metadata={"much": "x" * 50_000})
        async with open_plain_socket(server, make_request(make_big_query(8))) as stalled:
            cut = asyncio.create_task(wait_until_cut(stalled))
            responses = 0
            while not cut.done():
                assert await server.execute("{ __typename }")
                responses += 1
            await cut
        assert responses > 5


async def test_slow_reader_of_a_big_response_gets_all_of_it(start_server: StartServer) -> None:
    async with start_server(stalled_reader_seconds=0.5, **MANY_FIELDS) as server:
        await register(server, "a", metadata={"much": "x" * 50_000})
        loop = asyncio.get_running_loop()
        async with (
            open_plain_socket(server, make_request(make_big_query(12))) as slow,
            asyncio.timeout(SECONDS),
        ):
            began = loop.time()
            received = bytearray()
            while not received.endswith(b"}}}"):
                received += await loop.sock_recv(slow, 128 * 1024)
                await asyncio.sleep(0.005)
            assert loop.time() - began > 0.5
        assert len(received) > 12_000_000


async def test_closing_websocket_that_reads_nothing_does_not_break_the_shutdown(
    start_server: StartServer,
) -> None:
    async with start_server(stalled_reader_seconds=0.3) as server:
        await register(server, "a", metadata={"much": "x" * 50_000})
        client_context = connect(server.websocket_url)
        client = await client_context.__aenter__()
        client.socket.transport.pause_reading()
        await client.subscribe("1", make_big_query(8))
        await client.subscribe("2", "{ __typename }")
        client.socket.protocol.send_close(1000)
        client.socket.transport.writelines(client.socket.protocol.data_to_send())
        await asyncio.sleep(0.1)
    client.socket.transport.abort()
