"""An HTTP client with as little overhead as possible: one request at a time on a kept connection.

It reads only responses that have a Content-Length (RFC 9112, section 6.3).
"""

import asyncio
from collections.abc import Iterator
from typing import cast

import orjson

_CONTENT_LENGTH = b"content-length: "


class HttpConnection(asyncio.Protocol):
    """A connection that sends its next request as soon as the last one was answered.

    It goes on until `stop()`. A response with GraphQL errors, or with a status other than 200, is
    not an answer: it ends up in `failure`, and no further request is sent.
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
        response = split_response(self._buffer)
        if response is None:
            return
        head, body = response
        if not head.startswith(b"HTTP/1.1 200") or b'"errors":' in body:
            self.failure = self._buffer.decode()
            return
        self.answer_count += 1
        self.last_answer, self._buffer = body, b""
        if self._transport is not None:
            self._transport.write(next(self._requests))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self.failure = f"the server closed the connection: {exc}"

    def stop(self) -> None:
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()


async def open_http_connection(port: int, requests: Iterator[bytes]) -> HttpConnection:
    """Connect to a port of the loopback address and send the first request."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: HttpConnection(requests), "127.0.0.1", port
    )
    return connection


def split_response(buffer: bytes) -> tuple[bytes, bytes] | None:
    """Return the head and the body of a response, or None while it is incomplete.

    Raises: ValueError: the head has no Content-Length.
    """
    head, separator, body = buffer.partition(b"\r\n\r\n")
    if not separator:
        return None
    start = head.lower().index(_CONTENT_LENGTH) + len(_CONTENT_LENGTH)
    length = int(head[start:].partition(b"\r\n")[0])
    return (head, body) if len(body) >= length else None


def encode_post(path: str, body: bytes, token: str | None = None) -> bytes:
    """Return an HTTP request with a JSON body and, if given, a bearer token."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{authorization}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def encode_operation(query: str, **variables: object) -> bytes:
    """Return the JSON body of a GraphQL request."""
    return orjson.dumps({"query": query, "variables": variables})
