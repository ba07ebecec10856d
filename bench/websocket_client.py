"""A websocket client that costs next to nothing, so that the server is what is measured.

It reads frames as RFC 6455 has them, from a server that neither masks nor compresses them.
"""

import asyncio
import base64
import os
import struct
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

PROTOCOL = "graphql-transport-ws"

T = TypeVar("T")


class WebSocketClient(asyncio.Protocol):
    """Counts the messages it gets; `on_message` sees each, if it is given.

    `first_at` and `last_at` are when the first and the last of those expected came.
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

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self.closed = True

    def _read_frames(self) -> None:
        buffer, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= 2:  # noqa: PLR2004  # the shortest frame's head
            opcode, size, begin = buffer[at] & 15, buffer[at + 1], at + 2
            if size == 126:  # noqa: PLR2004  # the size follows in two bytes
                size, begin = int.from_bytes(buffer[at + 2 : at + 4]), at + 4
            elif size == 127:  # noqa: PLR2004  # the size follows in eight bytes
                size, begin = int.from_bytes(buffer[at + 2 : at + 10]), at + 10
            if end < begin + size:
                break
            at = begin + size
            if opcode == 1:
                self._missing -= 1
                self.first_at = self.first_at or time.perf_counter()
                if self.on_message is not None:
                    self.on_message(bytes(buffer[begin:at]))
                if self._missing == 0:
                    self.last_at = time.perf_counter()
                    self.last_message = bytes(buffer[begin:at])
                    self._complete.set()
            elif opcode == 9:  # noqa: PLR2004  # ping
                self._write(10, bytes(buffer[begin:at]))
        del buffer[:at]

    def send(self, text: str) -> None:
        self._write(1, text.encode())

    def expect(self, messages: int) -> None:
        """So many more, from now on."""
        self._missing = messages
        self.first_at = 0.0
        self._complete.clear()

    async def wait_for_messages(self) -> None:
        await self._complete.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, opcode: int, payload: bytes) -> None:
        """Masked with zeros, which leaves the payload as it is."""
        size = len(payload)
        head = (
            bytes([128 | opcode, 128 | size])
            if size < 126  # noqa: PLR2004  # as above
            else bytes([128 | opcode, 128 | 126]) + struct.pack("!H", size)
        )
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(head + b"\0\0\0\0" + payload)


async def connect(
    port: int, path: str, on_message: Callable[[bytes], None] | None = None
) -> WebSocketClient:
    loop = asyncio.get_running_loop()
    _, socket = await loop.create_connection(
        lambda: WebSocketClient(path, on_message), "127.0.0.1", port
    )
    await socket.opened.wait()
    return socket


async def repeat_in_batches(
    count: int, work: Callable[[], Awaitable[T]], at_once: int = 50
) -> list[T]:
    """Does it so many times, at most so many at once."""
    done: list[T] = []
    while len(done) < count:
        turn = min(at_once, count - len(done))
        done += await asyncio.gather(*(work() for _ in range(turn)))
    return done
