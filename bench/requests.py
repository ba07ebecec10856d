"""An HTTP client that costs next to nothing: requests one after another on connections kept open.

It reads responses that have a Content-Length, as RFC 9112 has them.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import cast

_LENGTH = b"content-length: "


class Caller(asyncio.Protocol):
    """Sends the next request as soon as one was answered, until it is told to stop."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.answers = 0
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(head.decode())
        at = head.lower().index(_LENGTH) + len(_LENGTH)
        size = int(head[at:].partition(b"\r\n")[0])
        if len(body) < size:
            return
        self.answers += 1
        self.answer, self._buffer = body, b""
        if self._transport is not None:
            self._transport.write(next(self._requests))

    def stop(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None


def post(path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def rate(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float
) -> tuple[float, bytes]:
    """Answers a second, and one of them; the requests are sent in turn, over and over."""
    loop, each = asyncio.get_running_loop(), cycle(requests)
    callers = [
        (await loop.create_connection(lambda: Caller(each), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    before, began = sum(caller.answers for caller in callers), time.perf_counter()
    await asyncio.sleep(seconds)
    answered = sum(caller.answers for caller in callers) - before
    taken = time.perf_counter() - began
    for caller in callers:
        caller.stop()
    return answered / taken, callers[0].answer
