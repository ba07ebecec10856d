"""GraphQL over server-sent events, in distinct connections mode: one stream for each operation.

https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md. It serves clients behind proxies
that break websockets.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from db.core.errors import Unauthenticated
from graph.auth.credential_verifier import GRANT_ENDED, Grant
from graph.core import errors
from graph.execution.response import OperationRejected

MEDIA_TYPE = "text/event-stream"

IS_STREAM = "node_registry.is_stream"
"""The key in the scope of a request whose response does not end by itself."""

_HEADERS = [
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b":\n\n"
_COMPLETE = b"event: complete\ndata: \n\n"


class EventStream:
    """A response whose events are payloads; comments between them keep the connection alive."""

    def __init__(
        self,
        payloads: AsyncGenerator[str, None],
        *,
        keepalive_seconds: float,
        connection: AbstractContextManager[None] | None = None,
        grant: Grant | None = None,
    ) -> None:
        """Create a response that ends with `grant`.

        `connection` is entered before anything is sent and may raise.
        """
        self._payloads = payloads
        self._keepalive_seconds = keepalive_seconds
        self._connection = connection or nullcontext()
        self._grant = grant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until its last event, or until the client disconnects."""
        with self._connection:
            scope[IS_STREAM] = True
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        sending = asyncio.create_task(self._send_payloads(send))
        tasks = [
            sending,
            *map(asyncio.create_task, (self._keep_alive(send), _wait_for_disconnect(receive))),
        ]
        try:
            if self._grant:
                self._grant.watch(sending.cancel)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sending.cancelled():
                formatted_errors = errors.format_registry_error(Unauthenticated(GRANT_ENDED))
                await _send_event(send, _format_next(encode_errors(formatted_errors)) + _COMPLETE)
                await send({"type": "http.response.body", "body": b""})
            elif sending.done():
                sending.result()
                await send({"type": "http.response.body", "body": b""})
        finally:
            if self._grant:
                self._grant.unwatch(sending.cancel)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_payloads(self, send: Send) -> None:
        try:
            async with aclosing(self._payloads) as payloads:
                async for payload in payloads:
                    await _send_event(send, _format_next(payload))
        except OperationRejected as error:
            await _send_event(send, _format_next(encode_errors(error.errors)))
        await _send_event(send, _COMPLETE)

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keepalive_seconds)
            await _send_event(send, _COMMENT)


async def stream_single(payload: str) -> AsyncGenerator[str, None]:
    """Yield the single response of a query or mutation."""
    yield payload


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_event(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


def encode_errors(formatted_errors: list[dict[str, Any]]) -> str:
    """Return a response that has errors and no data, as JSON."""
    return orjson.dumps({"errors": formatted_errors}).decode()


def _format_next(payload: str) -> bytes:
    return f"event: next\ndata: {payload}\n\n".encode()
