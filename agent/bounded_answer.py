"""A bound on the answers of HTTP servers, which none of them can exceed by compressing its answer.

httpx reads the whole body of an answer into memory, and has no bound of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

MAX_REPLY_BYTES = 1 << 20
"""An agent's replies have some kilobytes."""

MAX_PAGE_BYTES = 64 << 20
"""A page of 500 nodes may have 64 KiB of capabilities for each, and twice as much in JSON."""

UNCOMPRESSED = {"Accept-Encoding": "identity"}


class AnswerTooLongError(Exception):
    """The answer has too many bytes, or is compressed, so that its size is unknown."""


def make_limit(max_bytes: int) -> Callable[[httpx.Response], Awaitable[None]]:
    """Return an event hook of httpx for responses, which raises AnswerTooLongError.

    Requests need the header UNCOMPRESSED.
    """

    async def limit(response: httpx.Response) -> None:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AnswerTooLongError("the answer is compressed, which was not asked for")
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101  # of an AsyncClient
        response.stream = _BoundedStream(response.stream, max_bytes)

    return limit


class _BoundedStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > self._max_bytes:
                raise AnswerTooLongError(f"the answer has more than {self._max_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
