"""Callers that open many silent connections, or send too many messages over one."""

import asyncio
import base64
import time
from collections.abc import Sequence

import pytest

from db.core.database import Database
from db.core.enums import Role
from graph.server.file_limits import raise_open_file_limit
from tests.support.api import beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_token
from tests.support.transport_ws import PROTOCOL, connect, open_websocket

pytestmark = pytest.mark.usefixtures("logged")

SECONDS = 60
HEAD = b"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPGRADE = (
    HEAD
    + (
        f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
        f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    ).encode()
)
INIT_TIMEOUT = (4408).to_bytes(2, "big") + b"Connection initialisation timeout"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_streams(server: LiveServer, data: bytes, count: int) -> list[Stream]:
    """Open `count` connections and send the same bytes over each."""
    host, port = server.url.removeprefix("http://").split(":")
    streams = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        streams.append((reader, writer))
    return streams


async def read_until_closed(streams: Sequence[Stream]) -> list[bytes]:
    """Return what each stream receives until it is closed; a close frame is answered."""

    async def read_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        received = b""
        while part := await reader.read(4096):
            received += part
            if INIT_TIMEOUT in received:
                writer.write(b"\x88\x80" + bytes(4))
        writer.close()
        return received

    async with asyncio.timeout(SECONDS):
        return await asyncio.gather(*(read_stream(*stream) for stream in streams))


async def test_unauthenticated_sockets_delay_no_heartbeat_and_are_closed(
    start_server: StartServer, database: Database, *, thorough: bool
) -> None:
    count, seconds = (5000, 30) if thorough else (200, 1)
    raise_open_file_limit(4 * count)
    token = await create_token(database, Role.ADMIN)
    async with start_server(
        auth="required", connection_init_seconds=seconds, first_request_seconds=seconds
    ) as server:
        server.http.headers["authorization"] = f"Bearer {token.text}"
        await register(server, "a")
        websockets = await open_streams(server, UPGRADE, count)
        silent = await open_streams(server, b"", count // 4) + await open_streams(
            server, HEAD, count // 4
        )
        ends = asyncio.gather(read_until_closed(websockets), read_until_closed(silent))
        sequence, slowest = 0, 0.0
        while not ends.done():
            sequence += 1
            began = time.perf_counter()
            await beat(server, "a", sequence)
            slowest = max(slowest, time.perf_counter() - began)
        websocket_data, silent_data = await ends
    assert sequence > 3
    assert slowest < 5  # delays are milliseconds; a busy machine is slower
    assert all(received.startswith(b"HTTP/1.1 101") for received in websocket_data)
    assert all(received.endswith(INIT_TIMEOUT) for received in websocket_data)
    assert set(silent_data) == {b""}


LIMITED = {"requests_per_second_per_address": 50}


@pytest.mark.parametrize("kind", ["ping", "pong", "complete"])
async def test_flood_of_control_messages_closes_the_websocket(
    start_server: StartServer, kind: str
) -> None:
    message = {"type": kind} | ({"id": "1"} if kind == "complete" else {})
    async with start_server(**LIMITED) as server:
        async with connect(server.websocket_url) as client:
            for _ in range(99):
                await client.send(message)
            await client.subscribe("1", "{ __typename }")
            while (await client.receive())["type"] != "complete":
                pass
            for _ in range(200):
                await client.send(message)
            assert await client.wait_for_close() == (1008, "too many messages from one address")
        assert await server.execute("{ __typename }")


async def test_flood_before_init_closes_the_websocket(
    start_server: StartServer,
) -> None:
    async with (
        start_server(auth="required", **LIMITED) as server,
        open_websocket(server.websocket_url) as client,
    ):
        for _ in range(200):
            await client.send({"type": "ping"})
        assert (await client.wait_for_close())[0] == 1008


async def test_caller_that_ignores_the_rate_limit_loses_its_websocket(
    start_server: StartServer, database: Database
) -> None:
    greedy, modest = [await create_token(database, Role.VIEWER) for _ in range(2)]
    async with (
        start_server(auth="required", requests_per_second=20) as server,
        open_websocket(
            server.websocket_url, headers={"authorization": f"Bearer {greedy.text}"}
        ) as client,
        open_websocket(
            server.websocket_url, headers={"authorization": f"Bearer {modest.text}"}
        ) as other,
    ):
        for websocket in (client, other):
            await websocket.send({"type": "connection_init"})
            assert (await websocket.receive())["type"] == "connection_ack"
        for number in range(70):
            await client.subscribe(f"{number}", "{ __typename }")
        for number in range(200):
            await client.subscribe(f"more {number}", "{ __typename }")
        assert await client.wait_for_close() == (1008, "too many messages")
        await other.subscribe("1", "{ __typename }")
        assert (await other.receive())["type"] == "next"


@pytest.mark.parametrize(
    ("first", "frame"),
    [(b"", b"\x89\x80"), (b"", b"\x8a\x80"), (b"\x01\x80" + bytes(4), b"\x00\x80")],
    ids=["pings", "pongs", "parts of a message"],
)
async def test_flood_of_frames_without_a_message_is_cut(
    server: LiveServer, first: bytes, frame: bytes
) -> None:
    [(reader, writer)] = await open_streams(server, UPGRADE + first, 1)
    await reader.readuntil(b"\r\n\r\n")
    writer.write((frame + bytes(4)) * 20_000)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1_000_000)
    writer.close()
    assert await server.execute("{ __typename }")
