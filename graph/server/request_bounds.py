"""Bounds on what a connection holds in memory before its requests are handled.

llhttp, uvicorn's parser, has no bounds of its own: https://github.com/nodejs/llhttp leaves them to
its user. It is fed in parts that end where a request's head may end, so that a request is parsed
when the one before it was answered.
"""

import asyncio
from http import HTTPStatus

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from graph.auth.connection_limits import Connection
from graph.server.fair_queue import FairQueue

MAX_HEAD_BYTES = 32 * 1024
"""Size of all that a request consists of but its body: request line, headers, framing, trailers."""

MAX_FIELDS = 100
"""Headers of a request, trailers included."""

MAX_DROPPED_BYTES = 64 * 1024
"""Size of the rest of an unknown peer's body that is read and dropped after the response to it."""

FREE_BYTES = 2 * 1024
"""What an unknown peer may send for a request before it waits for its turns: most heads."""

_MAX_PART_BYTES = 16 * 1024
_MAX_TURN_BYTES = 4 * 1024
_HEAD_END = b"\r\n\r\n"
_MIN_REQUEST_LINE_BYTES = len(b"GET / HTTP/1.1")


class _Flow(FlowControl):
    """Flow control that does not resume while received data waits, whatever the app has read."""

    is_full = False

    def resume_reading(self) -> None:
        if not self.is_full:
            super().resume_reading()


class BoundedRequests(HttpToolsProtocol):
    """A mixin for uvicorn's protocol that rejects requests beyond the bounds.

    Pipelined requests are parsed as those before them are answered, and what cannot be parsed is
    rejected in its turn, in whatever parts it arrives.
    """

    flow: _Flow
    connection: Connection
    fair_queue: FairQueue
    _received: bytes = b""  # and not parsed yet
    _free_bytes = FREE_BYTES
    _head_bytes = 0
    _fields = 0
    _dropped_bytes = 0
    _rejection: HTTPStatus | None = None
    _is_upgrading = False
    _is_websocket = False
    _is_queued = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._read()

    def read_part(self) -> bool:
        """Read a part in a turn of the queue, and wait for the next turn if there is more."""
        self._is_queued = False
        cycle: RequestResponseCycle | None = self.cycle
        if self._can_parse():
            self._parse(_MAX_TURN_BYTES)
        self._read()
        return self.cycle is not cycle

    def _read(self) -> None:
        while self._can_parse():
            if self.connection.is_known:
                self._parse(_MAX_PART_BYTES)
            elif self._free_bytes > 0:
                self._parse(self._free_bytes)
            else:
                self._enqueue()
        if not self._is_open():
            self._received = b""
            return
        if self._has_last_request():
            self._received = b""
        self.flow.is_full = bool(self._received)
        if self._received:
            self.flow.pause_reading()
        elif not self._is_answering() or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _enqueue(self) -> None:
        self._is_queued = True
        self.fair_queue.add(self)

    def _can_parse(self) -> bool:
        return (
            bool(self._received)
            and not self._is_queued
            and self._is_open()
            and not self._has_last_request()
            and not self._is_answering_whole_request()
        )

    def _is_open(self) -> bool:
        return not self._is_websocket and not self.transport.is_closing()

    def _has_last_request(self) -> bool:
        return self._rejection is not None or self._is_upgrading

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _is_answering_whole_request(self) -> bool:
        return self._is_answering() and (bool(self.pipeline) or not self.cycle.more_body)

    def _parse(self, max_bytes: int) -> None:
        end = self._received.find(_HEAD_END, _MIN_REQUEST_LINE_BYTES, max_bytes)
        size = max_bytes if end < 0 else end + len(_HEAD_END)
        part, self._received = self._received[:size], self._received[size:]
        self._free_bytes -= len(part)
        self._head_bytes += len(part)
        self._feed(part)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._rejection = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._end_in_turn()

    def _feed(self, part: bytes) -> None:
        """Parse as uvicorn does, which drops what follows a request for an unknown protocol."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(part)
        except HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._is_upgrading = True
            else:
                [end] = upgrade.args
                self._received = part[end:] + self._received
        except HttpParserError:
            self._rejection = self._rejection or HTTPStatus.BAD_REQUEST

    def _end_in_turn(self) -> None:
        """Reject the last request or upgrade to a websocket, after the responses before it."""
        if not self._is_open() or self._is_answering_whole_request():
            return
        if self._rejection is not None:
            self._reject(self._rejection)
        elif self._is_upgrading:
            self._unset_keepalive_if_required()
            self.handle_websocket_upgrade()

    def _reject(self, status: HTTPStatus) -> None:
        """Answer with the status and close, or only close where its response is under way."""
        if not (self._is_answering() and self.cycle.response_started):
            body = f"{status.phrase}\n".encode()
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        self._is_websocket = True
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._fields = self._dropped_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > MAX_FIELDS:
            self._rejection = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        elif "method" not in self.scope:  # else it is a trailer, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            self._rejection = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if self._rejection is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        if self._rejection is not None:
            return
        super().on_body(body)
        if not self.connection.is_known and not self._is_answering():
            self._dropped_bytes += len(body)
            if self._dropped_bytes > MAX_DROPPED_BYTES:
                self._rejection = HTTPStatus.REQUEST_ENTITY_TOO_LARGE

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        if self._rejection is None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._end_in_turn()
        if not self._received:
            self._free_bytes = FREE_BYTES
        elif not self.connection.is_known and self._can_parse():
            self._enqueue()  # the peer did not wait for the response
        self._read()
