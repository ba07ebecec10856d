"""The id of each request, shared by its log lines, its errors and its response."""

import random
import re

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.core.token_format import redact_tokens
from graph.core.headers import get_header

_HEADER = b"x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestIdMiddleware:
    """Gives each request and websocket an id, for its log lines, its errors and its response.

    The id that a client sends as X-Request-ID is kept if it is safe to log.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        request_id = _find_client_id(scope) or make_request_id()
        id_header = (_HEADER, request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        # The server runs each request in a task of its own, so the context ends with it.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self._app(scope, receive, send_with_id if scope["type"] == "http" else send)


def make_request_id() -> str:
    """Return a random id. It is no secret, so `random` saves the system call of a secure source."""
    return f"{random.getrandbits(128):032x}"


def _find_client_id(scope: Scope) -> str | None:
    request_id = get_header(scope, _HEADER)
    is_safe = (
        request_id and _REQUEST_ID.fullmatch(request_id) and redact_tokens(request_id) == request_id
    )
    return request_id if is_safe else None
