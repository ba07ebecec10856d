"""GraphQL over websockets by the graphql-transport-ws protocol.

https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md. Strawberry's own handler fails on
malformed messages, closes the socket for a syntax error, and cannot bound or share its work.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import Annotated, Any, Literal, TypeVar

import orjson
import structlog
from graphql import GraphQLError
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from db.core.errors import Forbidden, RateLimited, RegistryError, Unauthenticated
from db.core.identity import ANONYMOUS, Caller
from db.core.token_format import redact_tokens
from graph.auth.authentication import make_caller, require_same_origin
from graph.auth.credential_verifier import GRANT_ENDED, Grant
from graph.core import errors
from graph.core.visible_text import replace_invisible
from graph.execution.engine import Engine
from graph.execution.request import (
    GraphQLRequest,
    TooManyValues,
    cut_tokens_of_request,
    find_first_problem,
    parse_json,
)
from graph.execution.response import OperationRejected
from graph.services import Services
from graph.transport.http import make_error_response, make_overload_response
from graph.transport.request_id import make_request_id

log = structlog.get_logger()

PROTOCOL = "graphql-transport-ws"
_MAX_REASON_BYTES = 123
_DISCONNECT = "websocket.disconnect"
_INIT = "connection_init"
# Other errors are not the caller's fault: they close with 1013 (RFC 6455: try again later). After
# 1008 (policy violation) clients do not reconnect by themselves.
_CODES: dict[type[RegistryError], int] = {Unauthenticated: 4401, Forbidden: 4403}

GrantT = TypeVar("GrantT", Grant, Grant | None)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Init(_Message):
    type: Literal["connection_init"]
    payload: dict[str, Any] | None = None


class _Ping(_Message):
    type: Literal["ping"]
    payload: dict[str, Any] | None = None


class _Pong(_Message):
    type: Literal["pong"]
    payload: dict[str, Any] | None = None


class _Subscribe(_Message):
    type: Literal["subscribe"]
    id: str = Field(min_length=1, max_length=255)
    payload: GraphQLRequest


class _Complete(_Message):
    type: Literal["complete"]
    id: str = Field(min_length=1, max_length=255)


_MESSAGE: TypeAdapter[_Init | _Ping | _Pong | _Subscribe | _Complete] = TypeAdapter(
    Annotated[_Init | _Ping | _Pong | _Subscribe | _Complete, Field(discriminator="type")]
)


class _ConnectionClosed(Exception):
    """The end of a connection, with a close code of the protocol."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class GraphQLOverWebSocket:
    """The ASGI endpoint of GraphQL over websockets."""

    def __init__(self, engine: Engine, services: Services) -> None:
        self._engine = engine
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        try:
            require_same_origin(scope, self._services.settings)
            with self._services.caller_limits.hold_connection():
                await self._serve(websocket)
        except Forbidden as error:
            await websocket.send_denial_response(make_error_response(error))
        except RateLimited as error:
            await websocket.send_denial_response(make_overload_response(error))

    async def _serve(self, websocket: WebSocket) -> None:
        is_offered = PROTOCOL in websocket.scope["subprotocols"]
        await websocket.accept(PROTOCOL if is_offered else None)
        if is_offered:
            await _Connection(websocket, self._engine, self._services).serve()
        else:
            await websocket.close(4406, "Subprotocol not acceptable")


class _Connection:
    def __init__(self, websocket: WebSocket, engine: Engine, services: Services) -> None:
        self._websocket = websocket
        self._engine = engine
        self._services = services
        self._grant: Grant | None = None
        self._caller: Caller | None = None  # set when the connection is acknowledged
        self._running: dict[str, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Serve until either side ends the connection, then cancel operations that still run."""
        try:
            async with asyncio.TaskGroup() as tasks:
                try:
                    await self._receive(tasks)
                finally:
                    for operation in self._running.values():
                        operation.cancel()
        except* _ConnectionClosed as group:
            close = next(iter(group.exceptions))
            assert isinstance(close, _ConnectionClosed)  # noqa: S101  # guaranteed by `except*`
            reason = redact_tokens(close.reason).encode()[:_MAX_REASON_BYTES]
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await self._websocket.close(close.code, reason.decode(errors="ignore"))
        except* WebSocketDisconnect:
            pass

    async def _receive(self, tasks: asyncio.TaskGroup) -> None:
        authentication = self._services.authentication
        try:
            async with asyncio.timeout(self._services.settings.connection_init_seconds) as deadline:
                self._deadline = deadline
                self._grant = await _close_on_rejection(
                    authentication.authenticate_handshake(self._websocket.scope)
                )
                while (event := await self._websocket.receive())["type"] != _DISCONNECT:
                    await self._handle_message(_parse_message(event.get("text")), tasks)
        except TimeoutError as error:
            if self._caller is None:
                raise _ConnectionClosed(4408, "Connection initialisation timeout") from error
            raise _ConnectionClosed(4401, GRANT_ENDED) from error
        finally:
            if self._grant is not None:
                self._grant.unwatch(self._expire)

    async def _initialize(self, message: _Init) -> None:
        if self._caller is not None:
            raise _ConnectionClosed(4429, "Too many initialisation requests")
        scope = self._websocket.scope
        if self._grant is None:
            authentication = self._services.authentication
            self._grant = await _close_on_rejection(
                authentication.authenticate_init(scope, message.payload)
            )
        self._caller = make_caller(self._grant.identity, scope)
        self._deadline.reschedule(None)
        self._grant.watch(self._expire)
        await self._send({"type": "connection_ack"})

    def _expire(self) -> None:
        """Close the connection, because its grant has ended."""
        self._deadline.reschedule(asyncio.get_running_loop().time())

    async def _handle_message(
        self, message: _Init | _Ping | _Pong | _Subscribe | _Complete, tasks: asyncio.TaskGroup
    ) -> None:
        match message:
            case _Init():
                await self._initialize(message)
            case _Ping():
                self._charge_message()
                await self._send_text(_format_pong(message.payload))
            case _Pong():
                self._charge_message()
            case _Subscribe():
                await self._subscribe(message, tasks)
            case _Complete():
                self._charge_message()
                if operation := self._running.pop(message.id, None):
                    operation.cancel()

    def _charge_message(self) -> None:
        """Charge the caller for a message that is not an operation, or was rate-limited."""
        caller = self._caller or make_caller(ANONYMOUS, self._websocket.scope)
        try:
            self._services.caller_limits.charge_message(caller)
        except RateLimited as error:
            raise _ConnectionClosed(1008, error.message) from error

    async def _subscribe(self, message: _Subscribe, tasks: asyncio.TaskGroup) -> None:
        if self._caller is None:
            raise _ConnectionClosed(4401, "Unauthorized")
        if message.id in self._running:
            raise _ConnectionClosed(4409, f"Subscriber for {message.id} already exists")
        limit = self._services.settings.max_operations_per_connection
        if len(self._running) >= limit:
            error = RateLimited(f"at most {limit} operations at once on one connection")
            self._charge_message()
            await self._send_error(message.id, errors.format_registry_error(error))
            return
        operation = self._run_operation(message.id, message.payload, self._caller)
        self._running[message.id] = tasks.create_task(operation)

    async def _run_operation(
        self, operation_id: str, request: GraphQLRequest, caller: Caller
    ) -> None:
        structlog.contextvars.bind_contextvars(
            request_id=make_request_id(), operation=replace_invisible(operation_id)
        )
        try:
            result = await self._engine.handle(request, caller)
            if isinstance(result, str):
                await self._send_next(operation_id, result)
            else:
                async with contextlib.aclosing(result) as payloads:
                    async for payload in payloads:
                        await self._send_next(operation_id, payload)
            self._forget(operation_id)
            await self._send({"type": "complete", "id": operation_id})
        except WebSocketDisconnect:
            pass
        except OperationRejected as error:
            await self._send_error(operation_id, error.errors)
        except RateLimited as error:
            self._charge_message()
            await self._send_error(operation_id, errors.format_registry_error(error))
        except Exception as error:  # noqa: BLE001  # any error ends this operation alone
            graphql_error = GraphQLError(str(error), original_error=error)
            await self._send_error(operation_id, errors.format_errors([graphql_error]))
        finally:
            self._forget(operation_id)

    async def _send_next(self, operation_id: str, payload: str) -> None:
        """Send a payload, encoded once for all subscribers that see the same."""
        quoted = orjson.dumps(operation_id).decode()
        await self._send_text(f'{{"id":{quoted},"type":"next","payload":{payload}}}')

    def _forget(self, operation_id: str) -> None:
        """Free the operation's id before its last message, after which the client may reuse it."""
        if self._running.get(operation_id) is asyncio.current_task():
            del self._running[operation_id]

    async def _send_error(self, operation_id: str, payload: list[dict[str, Any]]) -> None:
        self._forget(operation_id)
        await self._send({"type": "error", "id": operation_id, "payload": payload})

    async def _send(self, message: dict[str, Any]) -> None:
        await self._send_text(orjson.dumps(message).decode())

    async def _send_text(self, text: str) -> None:
        await self._websocket.send_text(text)


async def _close_on_rejection(pending: Awaitable[GrantT]) -> GrantT:
    try:
        return await pending
    except RegistryError as error:
        errors.ERROR_COUNTER.labels(error.code).inc()
        raise _ConnectionClosed(_CODES.get(type(error), 1013), error.message) from error


def _format_pong(payload: dict[str, Any] | None) -> str:
    echoed = {} if payload is None else {"payload": payload}
    try:
        return json.dumps({"type": "pong", **echoed}, allow_nan=False)
    except ValueError as error:
        raise _ConnectionClosed(4400, f"Invalid message: ping.payload: {error}") from error


def _parse_message(text: str | None) -> _Init | _Ping | _Pong | _Subscribe | _Complete:
    if text is None:
        raise _ConnectionClosed(4400, "Messages must be text")
    try:
        value = parse_json(text)
        if not (isinstance(value, dict) and value.get("type") == _INIT):  # its place for a token
            value = cut_tokens_of_request(value, text)
        return _MESSAGE.validate_python(value)
    except ValidationError as error:
        field, problem = find_first_problem(error)
        raise _ConnectionClosed(4400, f"Invalid message: {field or 'it'} {problem}") from error
    except TooManyValues as error:
        raise _ConnectionClosed(4400, f"Messages {error}") from error
    except ValueError as error:
        raise _ConnectionClosed(4400, f"Messages must be JSON: {error}") from error
