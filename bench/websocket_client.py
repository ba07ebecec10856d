"""A websocket client with as little overhead as possible, so that the server is what is measured.

It reads the frames of RFC 6455 from a server that neither masks nor compresses them.
"""

import asyncio
import base64
import os
import struct
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

PROTOCOL = "graphql-transport-ws"
CONNECTION_INIT = '{"type":"connection_init"}'

T = TypeVar("T")


class WebSocketClient(asyncio.Protocol):
    """A connection that counts the messages it receives and hands each to `on_message`, if given.

    `first_at` and `last_at` are the times (`time.perf_counter`) at which the first and the last of
    the expected messages arrived.
    """

    def __init__(self, path: str, on_message: Callable[[bytes], None] | None = None) -> None:
        self._path = path
        self.on_message = on_message
        self.closed = False
        self._buffer = bytearray()
        self.opened = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.last_message = b""
        self.first_at = self.last_at = 0.0
        self._missing = 0
        self._complete = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )
        self._transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.opened.is_set():
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(head.decode())
            self._buffer = rest
            self.opened.set()
        self._read_frames()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self.closed = True

    def _read_frames(self) -> None:
        buffer, offset, end = self._buffer, 0, len(self._buffer)
        while end - offset >= 2:  # noqa: PLR2004  # size of the shortest frame header
            opcode, size, payload_at = buffer[offset] & 15, buffer[offset + 1], offset + 2
            if size == 126:  # noqa: PLR2004  # the size follows in two bytes
                size, payload_at = int.from_bytes(buffer[offset + 2 : offset + 4]), offset + 4
            elif size == 127:  # noqa: PLR2004  # the size follows in eight bytes
                size, payload_at = int.from_bytes(buffer[offset + 2 : offset + 10]), offset + 10
            if end < payload_at + size:
                break
            offset = payload_at + size
            if opcode == 1:
                self._missing -= 1
                self.first_at = self.first_at or time.perf_counter()
                if self.on_message is not None:
                    self.on_message(bytes(buffer[payload_at:offset]))
                if self._missing == 0:
                    self.last_at = time.perf_counter()
                    self.last_message = bytes(buffer[payload_at:offset])
                    self._complete.set()
            elif opcode == 9:  # noqa: PLR2004  # ping
                self._write(10, bytes(buffer[payload_at:offset]))
        del buffer[:offset]

    def send(self, text: str) -> None:
        self._write(1, text.encode())

    def expect(self, count: int) -> None:
        """Count `count` messages from now on; `wait_for_messages` waits for the last of them."""
        self._missing = count
        self.first_at = 0.0
        self._complete.clear()

    async def wait_for_messages(self) -> None:
        await self._complete.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, opcode: int, payload: bytes) -> None:
        """Write a frame with a mask of zeros, which leaves the payload unchanged."""
        size = len(payload)
        head = (
            bytes([128 | opcode, 128 | size])
            if size < 126  # noqa: PLR2004  # the size fits into the header
            else bytes([128 | opcode, 128 | 126]) + struct.pack("!H", size)
        )
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(head + b"\0\0\0\0" + payload)


async def connect(
    port: int, path: str, on_message: Callable[[bytes], None] | None = None
) -> WebSocketClient:
    """Open a websocket to a port of the loopback address."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(
        lambda: WebSocketClient(path, on_message), "127.0.0.1", port
    )
    await client.opened.wait()
    return client


async def connect_graphql(
    port: int, on_message: Callable[[bytes], None] | None = None
) -> WebSocketClient:
    """Open a websocket of graphql-transport-ws and wait for its connection_ack.

    The connection_ack is the first message that `on_message` gets.
    """
    client = await connect(port, "/graphql", on_message)
    client.expect(1)
    client.send(CONNECTION_INIT)
    await client.wait_for_messages()
    return client


async def repeat_in_batches(
    count: int, work: Callable[[], Awaitable[T]], batch_size: int = 50
) -> list[T]:
    """Call `work` `count` times, at most `batch_size` at once, and return the results."""
    results: list[T] = []
    while len(results) < count:
        size = min(batch_size, count - len(results))
        results += await asyncio.gather(*(work() for _ in range(size)))
    return results
