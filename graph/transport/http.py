"""GraphQL over HTTP, as the draft of the specification defines it (2025).

https://graphql.github.io/graphql-over-http/draft/. Strawberry's own view answers malformed input
with 500 or plain text and does not know the specification's media type.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphql import OperationType
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from db.core.errors import (
    BadInput,
    Forbidden,
    RateLimited,
    RegistryError,
    Unauthenticated,
    Unavailable,
)
from db.core.token_format import cut_tokens
from graph.auth.authentication import make_caller
from graph.auth.caller_limits import RETRY_AFTER_SECONDS
from graph.core import errors
from graph.core.errors import InvalidRequest, OperationTimedOut
from graph.core.headers import get_header
from graph.execution.engine import Engine, KindNotAllowed
from graph.execution.query_limits import QueryTooComplex
from graph.execution.request import (
    GraphQLRequest,
    TooManyValues,
    cut_tokens_of_request,
    find_first_problem,
    parse_json,
)
from graph.execution.response import OperationRejected
from graph.services import Services
from graph.transport.sse import MEDIA_TYPE as EVENT_STREAM
from graph.transport.sse import EventStream, encode_errors, stream_single

GRAPHQL_RESPONSE = "application/graphql-response+json"
JSON = "application/json"

# The drafts differ: 400 for a wrong document or wrong variables (newer drafts: 422), 200 once
# anything was executed (newer drafts: 294 with errors).
STATUS_NOT_EXECUTED = 400
STATUS_EXECUTED = 200

_BODY_SECONDS = 10
_UTF8 = {None, "utf-8", "utf8"}
_RANGES = {
    GRAPHQL_RESPONSE: GRAPHQL_RESPONSE,
    JSON: JSON,
    "application/*": JSON,
    "*/*": JSON,
    EVENT_STREAM: EVENT_STREAM,
}
_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")
_GRAPHIQL = FileResponse(
    Path(__file__).parent / "static" / "graphiql" / "index.html",
    headers={
        "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'",
    },
)
_KINDS = {
    "GET": {OperationType.QUERY},
    "POST": {OperationType.QUERY, OperationType.MUTATION},
}
_STREAM_KINDS = {OperationType.SUBSCRIPTION}

_STATUS: dict[type[RegistryError], int] = {
    BadInput: 400,
    InvalidRequest: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    QueryTooComplex: 400,
    RateLimited: 429,
    Unavailable: 503,
    OperationTimedOut: 503,
}


class _RejectedRequest(Exception):
    """A request rejected before execution; `status` is the HTTP status."""

    def __init__(
        self, status: int, error: RegistryError, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status)
        self.status, self.error, self.headers = status, error, headers or {}

    def to_response(self, media_type: str) -> Response:
        body = encode_errors(errors.format_registry_error(self.error))
        return _make_response(self.status, body, media_type, self.headers)


class GraphQLOverHTTP:
    """The ASGI endpoint of GraphQL over HTTP."""

    def __init__(self, engine: Engine, services: Services) -> None:
        self._engine = engine
        self._authentication = services.authentication
        self._settings = services.settings
        self._limits = services.caller_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            wants_page = self._settings.has_graphiql and _is_browser_navigation(scope)
            response = _GRAPHIQL if wants_page else await self._respond(scope, receive)
        except ClientDisconnect:
            return  # nobody waits for a response
        try:
            await response(scope, receive, send)
        except RateLimited as error:  # before the stream began
            await make_overload_response(error)(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response | EventStream:
        accepted_type = _negotiate_media_type(get_header(scope, b"accept"))
        is_stream = accepted_type == EVENT_STREAM
        media_type = JSON if accepted_type is None or is_stream else accepted_type
        try:
            _require(accepted_type is not None, 406, "Accept", f"must allow {JSON}")
            grant = await self._authentication.authenticate_request(scope)
            caller = make_caller(grant.identity, scope)
            request = await _read_request(scope, receive, self._settings.max_body_bytes)
            allowed_kinds = _KINDS[scope["method"]] | (_STREAM_KINDS if is_stream else set())
            payload = await self._engine.handle(request, caller, allowed_kinds)
            if not isinstance(payload, str):
                return EventStream(
                    payload,
                    keepalive_seconds=self._settings.keepalive_seconds,
                    connection=self._limits.hold_connection(),
                    grant=grant,
                )
            status = STATUS_EXECUTED
        except OperationRejected as error:
            payload = encode_errors(error.errors)
            status = STATUS_EXECUTED if media_type == JSON else STATUS_NOT_EXECUTED
        except (_RejectedRequest, KindNotAllowed, RegistryError) as error:
            return _make_rejection(error).to_response(media_type)
        if is_stream:
            return EventStream(
                stream_single(payload), keepalive_seconds=self._settings.keepalive_seconds
            )
        return _make_response(status, payload, media_type, {})


def make_error_response(error: RegistryError) -> Response:
    """Return the response to a request rejected before execution."""
    return _make_rejection(error).to_response(JSON)


def make_overload_response(error: RateLimited) -> Response:
    """Return the response to a connection beyond the limit of this process.

    Its status is 503, not 429, since the caller has not exceeded a rate of its own.
    """
    headers = {"retry-after": str(round(RETRY_AFTER_SECONDS))}
    return _RejectedRequest(503, error, headers).to_response(JSON)


def _is_browser_navigation(scope: Scope) -> bool:
    """Return whether a browser opens the address, rather than a client that sends a query."""
    return (
        scope["method"] == "GET"
        and QueryParams(scope["query_string"]).keys().isdisjoint({"query", "documentId"})
        and "text/html" in (get_header(scope, b"accept") or "")
    )


def _negotiate_media_type(accept: str | None) -> str | None:
    """Return the media type of the response, None when the client accepts none of ours.

    The client's preference is by `q`, and among equals by order.
    """
    if not accept:
        return JSON
    if accept in _RANGES:
        return _RANGES[accept]
    best_type, best_quality = None, 0.0
    for part in accept.split(","):
        media_range, _, parameters = part.partition(";")
        media_type = _RANGES.get(media_range.strip().lower())
        quality = _parse_quality(_find_parameter(parameters, "q"))
        is_utf8 = _find_parameter(parameters, "charset") in _UTF8
        if media_type and is_utf8 and quality > best_quality:
            best_type, best_quality = media_type, quality
    return best_type


def _parse_quality(q: str | None) -> float:
    return 1.0 if q is None else float(q) if _QUALITY.fullmatch(q) else 0.0


def _find_parameter(parameters: str, name: str) -> str | None:
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"').lower()
    return None


async def _read_request(scope: Scope, receive: Receive, max_bytes: int) -> GraphQLRequest:
    method = scope["method"]
    if method == "GET":
        parameters = _parse_query_string(QueryParams(scope["query_string"]))
    elif method == "POST":
        _require_json(scope)
        parameters = _parse_json("body", await _read_body(scope, receive, max_bytes))
    else:
        raise _RejectedRequest(
            405,
            InvalidRequest(f"the method {method} is not allowed: use GET or POST"),
            {"allow": "GET, POST"},
        )
    try:
        return GraphQLRequest.model_validate(parameters)
    except ValidationError as error:
        field, problem = find_first_problem(error)
        raise _RejectedRequest(400, BadInput(field or "body", problem)) from error


def _parse_query_string(query: QueryParams) -> dict[str, Any]:
    """Return the parameters; an empty one counts as absent."""
    parameters = {cut_tokens(name): cut_tokens(value) for name, value in query.items() if value}
    return parameters | {
        name: _parse_json(name, parameters[name])
        for name in ("variables", "extensions")
        if name in parameters
    }


def _require_json(scope: Scope) -> None:
    header = get_header(scope, b"content-type") or ""
    if header == JSON:
        return
    content_type, _, parameters = header.partition(";")
    _require(content_type.strip().lower() == JSON, 415, "Content-Type", f"must be {JSON}")
    is_utf8 = _find_parameter(parameters, "charset") in _UTF8
    _require(is_utf8, 415, "Content-Type", "the charset must be utf-8")


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> str:
    content_length = get_header(scope, b"content-length") or ""
    size = int(content_length) if content_length.isdecimal() else 0
    too_large = f"must be at most {max_bytes} bytes"
    _require(size <= max_bytes, 413, "body", too_large)
    body, has_more = bytearray(), True
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while has_more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                has_more = message.get("more_body", False)
                _require(len(body) <= max_bytes, 413, "body", too_large)
    except TimeoutError as error:
        problem = f"must arrive within {_BODY_SECONDS} seconds"
        raise _RejectedRequest(408, BadInput("body", problem), {"connection": "close"}) from error
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _RejectedRequest(400, BadInput("body", "must be UTF-8")) from error


def _require(condition: bool, status: int, field: str, problem: str) -> None:  # noqa: FBT001  # an assertion
    if not condition:
        raise _RejectedRequest(status, BadInput(field, problem))


def _parse_json(field: str, text: str) -> Any:
    try:
        return cut_tokens_of_request(parse_json(text), text)
    except TooManyValues as error:
        raise _RejectedRequest(400, BadInput(field, str(error))) from error
    except ValueError as error:
        raise _RejectedRequest(400, BadInput(field, f"is not JSON: {error}")) from error


def _make_rejection(error: _RejectedRequest | KindNotAllowed | RegistryError) -> _RejectedRequest:
    if isinstance(error, _RejectedRequest):
        return error
    if isinstance(error, KindNotAllowed):
        return _make_kind_rejection(error.kind)
    headers = {}
    seconds = error.details.get("retryAfterSeconds")
    if isinstance(seconds, float):
        headers["retry-after"] = str(math.ceil(seconds))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return _RejectedRequest(_STATUS[type(error)], error, headers)


def _make_kind_rejection(kind: OperationType) -> _RejectedRequest:
    if kind is OperationType.MUTATION:
        error = InvalidRequest("mutations must be sent by POST")
        return _RejectedRequest(405, error, {"allow": "POST"})
    error = InvalidRequest(
        "subscriptions must be sent over a websocket at this address,"
        f" or with Accept: {EVENT_STREAM}"
    )
    return _RejectedRequest(400, error)


def _make_response(status: int, body: str, media_type: str, headers: Mapping[str, str]) -> Response:
    content_type = f"{media_type}; charset=utf-8"
    return Response(body, status, {"content-type": content_type, **headers})
