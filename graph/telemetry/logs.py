"""Structured logs to standard error: JSON in production, for people in development."""

import logging
import random
import re
import sys
from typing import Literal

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.types import Processor

from db.core.token_format import redact_tokens
from graph.core.headers import get_header

# Local variables hold what callers sent and what nobody should read; a large one takes seconds.
_FORMAT_WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
_HEADER = b"x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def configure_logging(environment: Literal["development", "production"], level: str) -> None:
    """Sends our events and those of the libraries through one pipeline."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor] = (
        [
            structlog.processors.ExceptionRenderer(_FORMAT_WITHOUT_LOCALS),
            structlog.processors.JSONRenderer(),
        ]
        if environment == "production"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        _RedactingFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Some of them would write down what is sent, keys included.
    for name in ("uvicorn", "alembic", "asyncio", "httpx", "httpcore", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    """Callers put them where they do not belong, and errors quote what they were given."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_tokens(super().format(record))


class RequestIdMiddleware:
    """Gives each request and each websocket an id: in its log lines, its errors and its response.

    A caller's own X-Request-ID is kept where it is harmless.
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

        # The server runs each in a task of its own, whose context ends with it.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self._app(scope, receive, send_with_id if scope["type"] == "http" else send)


def make_request_id() -> str:
    """No secret, and the system's source of those would cost each request a call of it."""
    return f"{random.getrandbits(128):032x}"


def _find_client_id(scope: Scope) -> str | None:
    request_id = get_header(scope, _HEADER)
    is_safe = (
        request_id and _REQUEST_ID.fullmatch(request_id) and redact_tokens(request_id) == request_id
    )
    return request_id if is_safe else None
