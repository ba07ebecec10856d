"""A connection in memory: what the peer sends reaches the protocol in exactly these parts."""

import asyncio
from typing import Any

_SYSTEM_BUFFER_BYTES = 64 * 1024


class _Socket:
    def __init__(self, peer: tuple[str, int]) -> None:
        self._peer = peer

    def getpeername(self) -> tuple[str, int]:
        return self._peer

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 9205

    def setsockopt(self, *_: object) -> None:
        pass


class MemoryTransport(asyncio.Transport):
    """A transport whose peer reads everything at once; `sent` is what it has read.

    What the protocol raises is raised by `receive`, or by the loop.
    """

    def __init__(self, protocol: asyncio.Protocol, peer: tuple[str, int]) -> None:
        super().__init__({"socket": _Socket(peer), "peername": peer})
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._waiting = b""
        self._is_reading = True
        self._is_closing = False
        self.sent = bytearray()
        protocol.connection_made(self)

    def receive(self, data: bytes) -> None:
        """Give the protocol what the peer sent, as soon as it reads."""
        self._waiting += data
        while self._waiting and self._is_reading and not self._is_closing:
            part = self._waiting[:_SYSTEM_BUFFER_BYTES]
            self._waiting = self._waiting[_SYSTEM_BUFFER_BYTES:]
            self._protocol.data_received(part)

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.sent += data

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self._protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.call_soon(self.receive, b"")

    def is_reading(self) -> bool:
        return self._is_reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol
