"""Peers that send without an end over raw sockets, before anybody knows who they are."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

GET = b"GET /health/live HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /graphql HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n"
)


@dataclass(frozen=True)
class Attack:
    """Bytes that a connection begins with, and those that follow for ever."""

    start: bytes
    endless: bytes


HEADS = {
    "headers": Attack(GET, b"x: y\r\n" * 500),
    "a header": Attack(GET + b"x: ", b"y" * 5000),
    "a header's name": Attack(GET, b"y" * 5000),
    "a path": Attack(b"GET /", b"y" * 5000),
    "a query string": Attack(b"GET /?query=", b"y" * 5000),
    "empty lines": Attack(b"", b"\r\n" * 1000),
    "headers after Expect": Attack(POST + b"Expect: 100-continue\r\n", b"x: y\r\n" * 500),
    "headers of a websocket": Attack(UPGRADE, b"x: y\r\n" * 500),
}
BODIES = {
    "trailers": Attack(CHUNKED + b"0\r\n", b"x: y\r\n" * 500),
    "a trailer": Attack(CHUNKED + b"0\r\nx: ", b"y" * 5000),
    "a chunk's extension": Attack(CHUNKED + b"2;", b"y" * 5000),
    "tiny chunks": Attack(CHUNKED, b"1\r\ny\r\n" * 500),
    "chunks": Attack(CHUNKED, b"fff\r\n" + b"y" * 0xFFF + b"\r\n"),
    "a body": Attack(POST + b"Content-Length: 1000000000\r\n\r\n", b"y" * 5000),
}
WEBSOCKETS = {
    "messages": Attack(UPGRADE + b"\r\n", b"\x81\x81\0\0\0\0y" * 500),
    "fragments": Attack(UPGRADE + b"\r\n\x01\x80\0\0\0\0", b"\x00\x81\0\0\0\0y" * 500),
    "pings": Attack(UPGRADE + b"\r\n", b"\x89\x80\0\0\0\0" * 500),
    "a message": Attack(
        UPGRADE + b"\r\n\x81\xff" + struct.pack("!Q", 1_000_000) + bytes(4), b"y" * 5000
    ),
}
PIPELINES = {
    "pipelined requests": Attack(b"", (POST + b"Content-Length: 2\r\n\r\n{}") * 50),
    "pipelined requests for health": Attack(b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 100),
}
ATTACKS = HEADS | BODIES | WEBSOCKETS | PIPELINES


async def attack(port: int, data: Attack) -> bytes:
    """Send for ever over one connection, and return what it answered until it was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(read_until_closed(reader))
    try:
        with suppress(ConnectionError):
            writer.write(data.start)
            while data.endless and not answer.done():
                writer.write(data.endless)
                await writer.drain()
                await asyncio.sleep(0)
        return await answer
    finally:
        answer.cancel()
        writer.transport.abort()


async def read_until_closed(reader: asyncio.StreamReader) -> bytes:
    """Return the first bytes of an answer, and drop the rest."""
    received = b""
    with suppress(ConnectionError):
        while part := await reader.read(65536):
            received += part[: 65536 - len(received)]
    return received


@asynccontextmanager
async def attack_by_many(
    port: int, attacks: Sequence[Attack], connections: int
) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    """Attack over so many connections at once, each in one of the ways, during the block."""
    tasks = [
        asyncio.create_task(attack(port, attacks[number % len(attacks)]))
        for number in range(connections)
    ]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
