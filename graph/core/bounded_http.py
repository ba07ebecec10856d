"""Requests over HTTP whose answers have a bound, also where the server compresses them."""

from collections.abc import Mapping

import httpx


class AnswerTooLong(Exception):
    """The answer has more than the bytes that were allowed."""


async def fetch(
    http: httpx.AsyncClient, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None
) -> tuple[int, bytes]:
    """Return the status and the body of the answer at the URL, as it was sent.

    It is not decompressed: the server was asked not to compress it. Raises: AnswerTooLong.
    httpx.HTTPError.
    """
    content = bytearray()
    uncompressed = {"accept-encoding": "identity", **(headers or {})}
    async with http.stream("GET", url, headers=uncompressed) as response:
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > max_bytes:
                raise AnswerTooLong(f"the response has more than {max_bytes} bytes")
    return response.status_code, bytes(content)
