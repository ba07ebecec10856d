"""Callers that open many connections and say nothing, or say too much on one."""

import asyncio
import base64
import time
from collections.abc import Sequence

import pytest
from api import beat, register
from conftest import LiveServer, StartServer
from keyring import create
from transport_ws import PROTOCOL

from db.database import Database
from db.values import Role
from graph.limits import allow_files_for

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


async def opened(server: LiveServer, sent: bytes, count: int) -> list[Stream]:
    """So many connections that say this and no more."""
    host, port = server.url.removeprefix("http://").split(":")
    streams = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        streams.append((reader, writer))
    return streams


async def told(streams: Sequence[Stream]) -> list[bytes]:
    """All that each was told until it was closed. The goodbye is answered."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        said = b""
        while part := await reader.read(4096):
            said += part
            if INIT_TIMEOUT in said:
                writer.write(b"\x88\x80" + bytes(4))
        writer.close()
        return said

    async with asyncio.timeout(SECONDS):
        return await asyncio.gather(*(one(*stream) for stream in streams))


async def test_sockets_that_never_say_who_they_are_delay_no_heartbeat_and_are_closed(
    start_server: StartServer, database: Database, *, thorough: bool
) -> None:
    count, seconds = (5000, 30) if thorough else (200, 1)
    allow_files_for(4 * count)
    key = await create(database, Role.ADMIN)
    async with start_server(auth="required", connection_init_seconds=seconds) as server:
        server.http.headers["authorization"] = f"Bearer {key.text}"
        await register(server, "a")
        websockets = await opened(server, UPGRADE, count)
        silent = await opened(server, b"", count // 4) + await opened(server, HEAD, count // 4)
        ends = asyncio.gather(told(websockets), told(silent))
        sequence, slowest = 0, 0.0
        while not ends.done():
            sequence += 1
            began = time.perf_counter()
            await beat(server, "a", sequence)
            slowest = max(slowest, time.perf_counter() - began)
        of_websockets, of_silent = await ends
    assert sequence > 3
    assert slowest < 5  # by milliseconds; a busy machine is slower
    assert all(said.startswith(b"HTTP/1.1 101") for said in of_websockets)
    assert all(said.endswith(INIT_TIMEOUT) for said in of_websockets)
    assert set(of_silent) == {b""}
