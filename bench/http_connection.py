"""An HTTP client that costs next to nothing: requests one after another on a connection kept open.

It reads responses that have a Content-Length, as RFC 9112 has them.
"""

import asyncio
from collections.abc import Iterator
from typing import cast

_LENGTH = b"content-length: "


class HttpConnection(asyncio.Protocol):
    """Sends the next request as soon as one was answered, until it is told to stop.

    An answer with errors is none, as is any status but 200.
    """

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self.answer_count = 0
        self.last_answer = b""
        self.failure = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        at = head.lower().index(_LENGTH) + len(_LENGTH)
        size = int(head[at:].partition(b"\r\n")[0])
        if len(body) < size:
            return
        if not head.startswith(b"HTTP/1.1 200") or b'"errors":' in body:
            self.failure = self._buffer.decode()
            return
        self.answer_count += 1
        self.last_answer, self._buffer = body, b""
        if self._transport is not None:
            self._transport.write(next(self._requests))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self.failure = f"the server hung up: {exc}"

    def stop(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()


async def open_connection(port: int, requests: Iterator[bytes]) -> HttpConnection:
    loop = asyncio.get_running_loop()
    _, caller = await loop.create_connection(lambda: HttpConnection(requests), "127.0.0.1", port)
    return caller


def encode_post(path: str, body: bytes, key: str | None = None) -> bytes:
    shown = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{shown}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
