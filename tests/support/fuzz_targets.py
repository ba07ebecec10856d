"""Functions that take any bytes from outside and fail if the registry does not stand them.

All run in memory and in virtual time, without a database: thousands of inputs take seconds.
"""

import asyncio
import logging
import random
import re
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any
from unittest.mock import patch

import orjson
from graphql import GraphQLError, GraphQLSyntaxError, OperationDefinitionNode, OperationType
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from graph.api.schema import schema
from graph.auth.connection_limits import mark_known
from graph.core import errors
from graph.execution.document_cache import Document, DocumentCache
from graph.execution.query_limits import QueryLimits, QueryTooComplex
from graph.execution.request import GraphQLRequest
from graph.server.message_bounds import BoundedMessages
from graph.server.request_bounds import BoundedRequests
from graph.server.uvicorn_server import create_server
from tests.support.hostile_peers import UPGRADE
from tests.support.memory_transport import MemoryTransport
from tests.support.offline_registry import make_offline_services
from tests.support.virtual_time import VirtualTimeLoop

Target = Callable[[bytes], None]

MAX_HELD_BYTES = 200 * 1024
"""What a connection of an unknown peer may make a process hold, as SECURITY.md promises."""

MAX_STEPS = 1_000_000
"""Calls of functions that one document may take; the most that was found is 170,000."""

MAX_RESPONSE_BYTES = 64 * 1024
"""Size of the errors of one document."""

STATUSES = {200, 206, 304, 307, 400, 401, 403, 404, 405, 406, 408, 413, 415, 416, 426, 429, 431}
STATUSES |= {100, 101, 503}
CLOSE_CODES = {1000, 1002, 1007, 1008, 1009, 4400, 4401, 4403, 4408, 4409, 4429}
ERROR_CODES = errors.list_error_codes() - {errors.INTERNAL}

_RESPONSE = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*\r\n(?:[A-Za-z-]+: ?[^\r\n\0]*\r\n)*\r\n")
_HEALTH = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_HANDSHAKE = UPGRADE + b"\r\n"
_FLOOD_BYTES = 512 * 1024
_MOMENT = 0.001
_SECOND = 1.0
_BODY_SECONDS = 10.0
_TOO_LATE = "timeout"
_ALL_DEADLINES = 200.0


@contextmanager
def open_http() -> Iterator[Target]:
    """Yield the target of what a connection may send.

    Every input is answered or cut, and requests of others are answered after it; it logs no error.
    It is the same requests in whatever parts and from whomever it arrives, and repeated without an
    end it fills no memory.
    """

    async def check(data: bytes) -> None:
        whole = await recorder.exchange([data], is_known=True)
        divided = await recorder.exchange(divide(data), is_known=False)
        assert divided == whole, (divided, whole)
        await recorder.flood(b"", data)
        for status in find_statuses(await registry.send(divide(data))):
            assert status in STATUSES, status
        assert find_statuses(await registry.send([_HEALTH])) == [200]

    with run_in_virtual_time(check) as (run, target):
        recorder, registry = run(_Recorder.open()), run(_Server.open())
        yield target


@contextmanager
def open_messages() -> Iterator[Target]:
    """Yield the target of the messages on a websocket, one a line.

    A line that begins as no text does, with a control character or a continuation byte of UTF-8,
    is a frame with that first byte. The registry sends messages of graphql-transport-ws with errors
    that it documents, closes with codes that it documents, and logs no error.
    """

    async def check(data: bytes) -> None:
        lines = data.split(b"\n")
        frames = list(map(make_frame, lines))
        echoes = {line[1:3] for line in lines if line[:1] == b"\x88"}
        await registry.flood(_HANDSHAKE, b"".join(frames))
        head, _, sent = (await registry.send([_HANDSHAKE, *frames])).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        for opcode, payload in parse_frames(sent):
            check_answer(opcode, payload, echoes)

    with run_in_virtual_time(check) as (run, target):
        registry = run(_Server.open())
        yield target


@contextmanager
def open_documents() -> Iterator[Target]:
    """Yield the target of documents, each in UTF-8.

    A document is rejected with errors that the registry documents and can encode, or its operations
    are measured and compiled, in a bounded number of steps.
    """
    limits = QueryLimits.from_settings(make_offline_services().settings)

    def check(data: bytes) -> None:
        text = data.decode(errors="replace")
        if not text:
            return  # which is no request
        with expect_no_errors(), expect_few_steps():
            check_document(text, limits)

    yield check


TARGETS: dict[str, Callable[[], AbstractContextManager[Target]]] = {
    "http": open_http,
    "messages": open_messages,
    "documents": open_documents,
}


@contextmanager
def run_in_virtual_time(
    check: Callable[[bytes], Awaitable[None]],
) -> Iterator[tuple[Callable[[Any], Any], Target]]:
    """Yield a function that runs a coroutine, and the target that runs `check`."""
    unhandled: list[Any] = []
    with ExitStack() as stack:
        # Time does not pass while a thread works, so that files are read without one.
        stack.enter_context(patch("anyio.to_thread.run_sync", run_without_thread))
        loop = stack.enter_context(asyncio.Runner(loop_factory=VirtualTimeLoop)).get_loop()
        loop.set_exception_handler(lambda _, context: unhandled.append(context))

        def target(data: bytes) -> None:
            with expect_no_errors():
                loop.run_until_complete(check(data))
            assert unhandled == [], unhandled

        yield loop.run_until_complete, target


async def run_without_thread(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
    return function(*args)


@contextmanager
def expect_no_errors() -> Iterator[None]:
    """Fail if anything logs an error during the block."""
    handler = _ErrorHandler()
    logging.getLogger().addHandler(handler)
    try:
        with capture_logs() as events:
            yield
    finally:
        logging.getLogger().removeHandler(handler)
    assert handler.records == [], handler.records
    logged = [event for event in events if event["log_level"] in {"error", "critical"}]
    assert logged == [], logged


class _ErrorHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@contextmanager
def expect_few_steps() -> Iterator[None]:
    """Fail as soon as more than MAX_STEPS functions are called during the block."""
    steps = 0

    def count(_frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        if event in {"call", "c_call"}:
            steps += 1
            assert steps <= MAX_STEPS

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert steps <= MAX_STEPS


def divide(data: bytes) -> list[bytes]:
    """Return the data in parts, of which some are single bytes; always the same."""
    generator = random.Random(data)  # noqa: S311  # no secret
    cuts = sorted(generator.randrange(len(data) + 1) for _ in range(generator.choice([1, 3, 20])))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class _Server:
    """An app behind the registry's own protocols."""

    def __init__(self, app: ASGIApp | None = None) -> None:
        self._config = create_server(make_offline_services()).config
        if app is not None:
            self._config.app, self._config.interface = app, "asgi3"
        self._config.load()
        self._state = ServerState()
        self._port = 0

    @classmethod
    async def open(cls) -> "_Server":
        return cls()

    async def send(self, parts: list[bytes]) -> bytes:
        """Send over a new connection until the end of all deadlines, and return the answer."""
        async with self._connect() as connection:
            await _send(connection, parts)
            await asyncio.sleep(_ALL_DEADLINES)
            assert connection.is_closing() or b"text/event-stream" in connection.sent
        return bytes(connection.sent)

    async def flood(self, start: bytes, data: bytes) -> None:
        """Send the data again and again, as fast as it is read; check what the server holds."""
        async with self._connect() as connection:
            await _send(connection, [start])
            connection.receive(data * (1 + _FLOOD_BYTES // (len(data) or 1)))
            for _ in range(60):
                held = count_held_bytes(connection)
                assert held <= MAX_HELD_BYTES, held
                await asyncio.sleep(_MOMENT)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[MemoryTransport]:
        """Yield a new connection, of which nothing may remain afterwards."""
        self._port = self._port % 60_000 + 1
        protocol = self._config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn does
            config=self._config, server_state=self._state, app_state={}
        )
        connection = MemoryTransport(protocol, ("127.0.0.1", self._port))
        try:
            yield connection
        finally:
            connection.close()
            await asyncio.sleep(_SECOND)
        assert not self._state.connections, self._state.connections
        assert not self._state.tasks, self._state.tasks


async def _send(connection: MemoryTransport, parts: Iterable[bytes]) -> None:
    for part in parts:
        connection.receive(part)
        await asyncio.sleep(_MOMENT)


def count_held_bytes(connection: MemoryTransport) -> int:
    """Return the size of what was read from the connection and is not handled yet."""
    protocol = connection.get_protocol()
    if isinstance(protocol, BoundedMessages):
        parts = [protocol.conn.reader.buffer, *protocol.frames]
    else:
        assert isinstance(protocol, BoundedRequests)
        cycle: RequestResponseCycle | None = protocol.cycle
        parts = [part for header in protocol.headers or () for part in header]
        parts += [] if cycle is None else [cycle.body]
    return len(protocol._received) + sum(map(len, parts))  # noqa: SLF001  # what this is about


class _Recorder(_Server):
    """A server whose app answers once it has a whole request."""

    def __init__(self) -> None:
        super().__init__(self._record)
        self._requests: list[Any] = []
        self._is_known = False

    async def exchange(self, parts: list[bytes], *, is_known: bool) -> tuple[list[Any], list[int]]:
        """Return the requests that the app was given, and the statuses of the responses.

        The peer of a known connection is known from its first request on.
        """
        self._requests, self._is_known = [], is_known
        answer = await self.send(parts)
        return self._requests, find_statuses(answer)

    async def _record(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_known:
            mark_known(scope)
        if scope["type"] == "websocket":
            self._requests.append((scope["path"], scope["headers"]))
            await send({"type": "websocket.close"})
            return
        message, body = await receive_in_time(receive), b""
        while message["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                head = scope["method"], scope["path"], scope["query_string"], scope["headers"]
                self._requests.append((*head, body))
                await Response()(scope, receive, send)
                return
            message = await receive_in_time(receive)
        if message["type"] == _TOO_LATE:
            await Response(status_code=408, headers={"connection": "close"})(scope, receive, send)


async def receive_in_time(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await receive()
    except TimeoutError:
        return {"type": _TOO_LATE}


def find_statuses(answer: bytes) -> list[int]:
    """Return the statuses of the responses; an answer that does not begin with one fails."""
    assert answer == b"" or _RESPONSE.match(answer), answer[:200]
    return [int(status) for status in _RESPONSE.findall(answer)]


def make_frame(line: bytes) -> bytes:
    """Return a masked frame (RFC 6455) of the line."""
    is_text = not line or not (line[0] < 0x20 or 0x80 <= line[0] < 0xC0)
    first, payload = (0x81, line) if is_text else (line[0], line[1:])
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload


def parse_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the opcode and the payload of each frame of a server, all of which are whole."""
    while data:
        opcode, size, start = data[0] & 0x0F, data[1], 2
        if size == 126:
            size, start = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            size, start = struct.unpack("!Q", data[2:10])[0], 10
        assert len(data) >= start + size
        yield opcode, data[start : start + size]
        data = data[start + size :]


def check_answer(opcode: int, payload: bytes, echoes: set[bytes]) -> None:
    if opcode == 8:
        assert payload[:2] in echoes or int.from_bytes(payload[:2]) in CLOSE_CODES, payload
        payload[2:].decode()
    elif opcode == 1:
        message = orjson.loads(payload)
        match message["type"]:
            case "error":
                problems = message["payload"]
            case "next":
                problems = message["payload"].get("errors", [])
            case kind:
                assert kind in {"connection_ack", "pong", "complete"}
                problems = []
        assert {error["extensions"]["code"] for error in problems} <= ERROR_CODES, problems
    else:
        assert opcode in {9, 10}


def check_document(text: str, limits: QueryLimits) -> None:
    cache = DocumentCache(schema.graphql)
    try:
        document = cache.get_document(GraphQLRequest(query=text))
    except (GraphQLSyntaxError, QueryTooComplex) as error:
        check_errors([error])
        return
    check_errors(document.errors)
    for name in {None, *list_operation_names(document)}:
        try:
            operation = document.select_operation(name)
            if not document.errors:
                limits.check(operation.complexity, {})
                _ = operation.forbidden_fields, operation.is_cached_by_snapshot
                is_stream = operation.kind is OperationType.SUBSCRIPTION
                _ = operation.event_shape if is_stream else operation.compiled
        except (errors.InvalidRequest, QueryTooComplex) as error:
            check_errors([error])


def list_operation_names(document: Document) -> list[str]:
    return [
        node.name.value
        for node in document.node.definitions
        if isinstance(node, OperationDefinitionNode) and node.name
    ]


def check_errors(problems: Sequence[Exception]) -> None:
    wrapped = [
        problem
        if isinstance(problem, GraphQLError)
        else GraphQLError(str(problem), original_error=problem)
        for problem in problems
    ]
    formatted = errors.format_errors(wrapped)
    assert {error["extensions"]["code"] for error in formatted} <= ERROR_CODES, formatted
    assert len(orjson.dumps(formatted)) < MAX_RESPONSE_BYTES
