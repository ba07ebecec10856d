"""How simulated agents reach the registry: connections that cost next to nothing.

Each is opened for the first request, and anew for the first one after it was lost, as the agent's
own are; what fails is raised as the agent's own errors.
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
from bench.http_connection import encode_post
from bench.websocket_client import WebSocketClient

PATH = "/graphql"
_PACE_ID = "pace"
_PING = 9
_DOCUMENT_TEXTS = {
    id(document.document): print_ast(document.document)
    for document in vars(documents).values()
    if isinstance(document, GraphQLRequest)
}


class Transport(Protocol):
    pace_listeners: dict[str, Callable[[float], None]]
    """By node id: who is told the registry's pace."""

    async def ask(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
        """The data of the answer. Raises RegistryAwayError and RefusedError."""

    def close(self) -> None: ...

    def suspend(self) -> None:
        """Neither reads nor answers pings, as a machine that sleeps; unless others share it."""

    def wake(self) -> None:
        """What was open before is not trusted any more."""


class WebSocketTransport:
    """Any number of agents may share it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: _AgentWebSocket | None = None
        self._opening = asyncio.Lock()
        self._request_count = 0
        self._pending: dict[str, asyncio.Future[Any]] = {}
        self.pace_listeners: dict[str, Callable[[float], None]] = {}

    async def ask(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
        self._request_count += 1
        number = str(self._request_count)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                async with self._opening:
                    socket = self._socket or await self._open()
                answer = self._pending[number] = asyncio.get_running_loop().create_future()
                socket.send(_encode_subscribe(number, _encode_request(document, variables)))
                return _extract_data(await answer)
        except TimeoutError:
            self.close()
            raise RegistryUnavailableError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
        finally:
            self._pending.pop(number, None)

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
        acknowledged = self._pending[""] = asyncio.get_running_loop().create_future()
        try:
            _, socket = await asyncio.get_running_loop().create_connection(
                lambda: _AgentWebSocket(self._receive, self._handle_loss), "127.0.0.1", self._port
            )
        except OSError as error:
            raise RegistryUnavailableError(str(error)) from None
        self._socket = socket
        await acknowledged
        socket.send(_encode_subscribe(_PACE_ID, _encode_request(documents.HEARTBEAT_PACE, {})))
        return socket

    def _receive(self, message: bytes) -> None:
        said = orjson.loads(message)
        match said["type"], said.get("id"):
            case "next", "pace":
                seconds = said["payload"]["data"]["heartbeatPace"]["intervalSeconds"]
                for hear in self.pace_listeners.values():
                    hear(seconds)
            case "connection_ack", _:
                self._resolve("", None)
            case "next", number:
                self._resolve(number, said["payload"])
            case "error", number:
                self._resolve(number, {"errors": said["payload"]})

    def _resolve(self, number: str, answer: object) -> None:
        waiting = self._pending.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _handle_loss(self, socket: "_AgentWebSocket") -> None:
        if socket is not self._socket:
            return  # long replaced
        self._socket = None
        lost, self._pending = self._pending, {}
        for waiting in lost.values():
            if not waiting.done():
                waiting.set_exception(RegistryUnavailableError("the websocket was lost"))


class _AgentWebSocket(WebSocketClient):
    def __init__(
        self, hear: Callable[[bytes], None], lose: Callable[["_AgentWebSocket"], None]
    ) -> None:
        super().__init__(PATH, hear)
        self._handle_loss = lose
        self._pinging: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._pinging is not None:
            self._pinging.cancel()
        self._handle_loss(self)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except ConnectionError:  # refused
            self.close()
        if self.opened.is_set() and self._pinging is None:
            self._pinging = asyncio.get_running_loop().call_later(PING_SECONDS, self._ping)
            self.send('{"type":"connection_init"}')

    def _ping(self) -> None:
        self._write(_PING, b"")
        self._pinging = asyncio.get_running_loop().call_later(PING_SECONDS, self._ping)

    def suspend(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()


class HttpTransport(asyncio.Protocol):
    """For one agent; it hears of no pace."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[Any] | None = None
        self.pace_listeners: dict[str, Callable[[float], None]] = {}

    async def ask(self, document: GraphQLRequest, variables: dict[str, Any]) -> Any:
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

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RegistryUnavailableError("the connection was lost"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        _, _, size = head.lower().partition(b"content-length: ")
        if len(body) >= int(size.partition(b"\r\n")[0]):
            self._buffer = b""
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(body)

    def _write(self, request: bytes) -> None:
        if self._transport is None:
            raise ConnectionResetError("the connection was lost")
        self._transport.write(request)


def _encode_request(document: GraphQLRequest, variables: dict[str, Any]) -> bytes:
    return orjson.dumps({"query": _DOCUMENT_TEXTS[id(document.document)], "variables": variables})


def _encode_subscribe(number: str, request: bytes) -> str:
    return f'{{"id":"{number}","type":"subscribe","payload":{request.decode()}}}'


def _extract_data(answer: Any) -> Any:
    if errors := answer.get("errors"):
        raise parse_errors(errors)
    return answer["data"]
