"""How simulated agents reach the registry, with as little overhead as possible.

A transport opens its connection for the first request, and again for the first request after a
loss, like the real agent's; failures are raised as the real agent's errors.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

import orjson
from gql import GraphQLRequest
from graphql import print_ast

from agent import documents
from agent.errors import RegistryUnavailableError, parse_errors
from agent.http_transport import TIMEOUT_SECONDS
from agent.websocket import PING_SECONDS
from bench.http_connection import encode_post, split_response
from bench.websocket_client import CONNECTION_INIT, WebSocketClient

PATH = "/graphql"
_PACE_ID = "pace"
_ACKNOWLEDGEMENT = ""
"""The key under which an opening websocket waits for its connection_ack."""
_PING = 9
_DOCUMENT_TEXTS = {
    id(document.document): print_ast(document.document)
    for document in vars(documents).values()
    if isinstance(document, GraphQLRequest)
}


class Transport(Protocol):
    """A connection to the registry for one agent, or shared by several."""

    pace_listeners: dict[str, Callable[[float], None]]
    """By node id: what to call with each new heartbeat pace, an interval in seconds."""

    async def execute(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
        """Return the data of the response.

        Raises: RegistryUnavailableError: no usable answer came; RequestRejectedError: the registry
        answered with errors.
        """

    def close(self) -> None: ...

    def suspend(self) -> None:
        """Stop reading and answering pings, as a sleeping machine does, unless it is shared."""

    def wake(self) -> None:
        """Close a connection from before the sleep, unless it is shared."""


class WebSocketTransport:
    """A websocket that any number of agents may share."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: _AgentWebSocket | None = None
        self._opening = asyncio.Lock()
        self._request_count = 0
        self._pending: dict[str, asyncio.Future[Any]] = {}
        self.pace_listeners: dict[str, Callable[[float], None]] = {}

    async def execute(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
        self._request_count += 1
        operation_id = str(self._request_count)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                async with self._opening:
                    socket = self._socket or await self._open()
                answer = self._pending[operation_id] = asyncio.get_running_loop().create_future()
                socket.send(_encode_subscribe(operation_id, _encode_request(document, variables)))
                return _extract_data(await answer)
        except TimeoutError:
            self.close()
            raise RegistryUnavailableError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
        finally:
            self._pending.pop(operation_id, None)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._handle_loss(self._socket)

    def suspend(self) -> None:
        if self._socket is not None and len(self.pace_listeners) == 1:
            self._socket.suspend()

    def wake(self) -> None:
        if len(self.pace_listeners) == 1:
            self.close()

    async def _open(self) -> "_AgentWebSocket":
        loop = asyncio.get_running_loop()
        acknowledgement = self._pending[_ACKNOWLEDGEMENT] = loop.create_future()
        try:
            _, socket = await loop.create_connection(
                lambda: _AgentWebSocket(self._receive, self._handle_loss), "127.0.0.1", self._port
            )
        except OSError as error:
            raise RegistryUnavailableError(str(error)) from None
        self._socket = socket
        await acknowledgement
        socket.send(_encode_subscribe(_PACE_ID, _encode_request(documents.HEARTBEAT_PACE, {})))
        return socket

    def _receive(self, message: bytes) -> None:
        event = orjson.loads(message)
        match event["type"], event.get("id"):
            case "next", "pace":
                seconds = event["payload"]["data"]["heartbeatPace"]["intervalSeconds"]
                for apply_pace in self.pace_listeners.values():
                    apply_pace(seconds)
            case "connection_ack", _:
                self._resolve(_ACKNOWLEDGEMENT, None)
            case "next", operation_id:
                self._resolve(operation_id, event["payload"])
            case "error", operation_id:
                self._resolve(operation_id, {"errors": event["payload"]})

    def _resolve(self, operation_id: str, answer: object) -> None:
        future = self._pending.pop(operation_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def _handle_loss(self, socket: "_AgentWebSocket") -> None:
        if socket is not self._socket:
            return  # another socket has replaced it
        self._socket = None
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(RegistryUnavailableError("the websocket was lost"))


class _AgentWebSocket(WebSocketClient):
    """A websocket that opens graphql-transport-ws by itself, pings, and reports its loss."""

    def __init__(
        self,
        on_message: Callable[[bytes], None],
        on_loss: Callable[["_AgentWebSocket"], None],
    ) -> None:
        super().__init__(PATH, on_message)
        self._on_loss = on_loss
        self._ping_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._on_loss(self)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except ConnectionError:  # the server rejected the handshake
            self.close()
        if self.opened.is_set() and self._ping_timer is None:
            self._schedule_ping()
            self.send(CONNECTION_INIT)

    def _schedule_ping(self) -> None:
        self._ping_timer = asyncio.get_running_loop().call_later(PING_SECONDS, self._ping)

    def _ping(self) -> None:
        self._write(_PING, b"")
        self._schedule_ping()

    def suspend(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()


class HttpTransport(asyncio.Protocol):
    """A kept HTTP connection of one agent; it does not receive the heartbeat pace."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[Any] | None = None
        self.pace_listeners: dict[str, Callable[[float], None]] = {}

    async def execute(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if self._transport is None:
                    await loop.create_connection(lambda: self, "127.0.0.1", self._port)
                self._answer = loop.create_future()
                self._write(encode_post(PATH, _encode_request(document, variables)))
                return _extract_data(orjson.loads(await self._answer))
        except TimeoutError:
            self.close()
            raise RegistryUnavailableError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
        except OSError as error:
            raise RegistryUnavailableError(str(error)) from None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def suspend(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def wake(self) -> None:
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RegistryUnavailableError("the connection was lost"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        response = split_response(self._buffer)
        if response is None:
            return
        _, body = response
        self._buffer = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(body)

    def _write(self, request: bytes) -> None:
        if self._transport is None:
            raise ConnectionResetError("the connection was lost")
        self._transport.write(request)


def _encode_request(document: GraphQLRequest, variables: dict[str, Any]) -> bytes:
    return orjson.dumps({"query": _DOCUMENT_TEXTS[id(document.document)], "variables": variables})


def _encode_subscribe(operation_id: str, request: bytes) -> str:
    return f'{{"id":"{operation_id}","type":"subscribe","payload":{request.decode()}}}'


def _extract_data(response: Any) -> Any:
    if errors := response.get("errors"):
        raise parse_errors(errors)
    return response["data"]
