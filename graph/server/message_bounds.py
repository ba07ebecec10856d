"""Bounds on what a websocket holds in memory before its messages are handled."""

from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from graph.auth.connection_limits import Connection
from graph.server.fair_queue import FairQueue

MAX_UNKNOWN_MESSAGE_BYTES = 64 * 1024
"""Size of a message before the connection is initialised."""

UNKNOWN_CLOSE_SECONDS = 1.0
"""Time for the answer to a close before the connection is initialised."""

FREE_BYTES = 8 * 1024
"""What an unknown peer may send before it waits for its turns: most initialisations."""

_MAX_PART_BYTES = 512
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedMessages(WebSocketsSansIOProtocol):
    """A mixin for uvicorn's protocol that limits the messages of a peer until it is known.

    uvicorn stops reading once a message waits, but has parsed all that came with it: parts are
    small.
    """

    def __init__(
        self, connection: Connection, fair_queue: FairQueue, *args: Any, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.connection = connection
        self._fair_queue = fair_queue
        self._received = b""  # and not parsed yet
        self._free_bytes = FREE_BYTES
        self._is_queued = False
        if not connection.is_known:
            self.conn.max_message_size = min(self.config.ws_max_size, MAX_UNKNOWN_MESSAGE_BYTES)
            connection.on_known = self._raise_limits
            self._known_close_timeout = self.close_timeout
            self.close_timeout = UNKNOWN_CLOSE_SECONDS

    def _raise_limits(self) -> None:
        self.conn.max_message_size = self.config.ws_max_size
        self.close_timeout = self._known_close_timeout

    def data_received(self, data: bytes) -> None:
        if self.connection.is_known and self.handshake_complete and not self._received:
            super().data_received(data)
        else:
            self._received += data
            self._read()

    def read_part(self) -> bool:
        """Read a part in a turn of the queue, and wait for the next turn if there is more."""
        self._is_queued = False
        self._free_bytes = _MAX_PART_BYTES
        self._read()
        return False

    def _read(self) -> None:
        while self._can_parse():
            if self.connection.is_known:
                part, self._received = self._received, b""
            elif self._free_bytes > 0:
                size = min(self._free_bytes, _MAX_PART_BYTES)
                part, self._received = self._received[:size], self._received[size:]
                self._free_bytes -= len(part)
            else:
                self._is_queued = True
                self._fair_queue.add(self)
                break
            super().data_received(part)
            self._reject_bad_handshake()
        if self._received:
            self.transport.pause_reading()
        elif not (self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _can_parse(self) -> bool:
        return (
            bool(self._received)
            and not self._is_queued
            and not self.transport.is_closing()
            and (self.handshake_complete or not self.handshake_initiated)
            and (self.connection.is_known or not self.read_paused)
        )

    def _reject_bad_handshake(self) -> None:
        """Answer a handshake that is no valid request; uvicorn would wait for ever."""
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(b"".join(self.conn.data_to_send()) or _BAD_REQUEST)
            self.transport.close()

    async def receive(self) -> ASGIReceiveEvent:
        event = await super().receive()
        if self._received:
            self._read()
        return event

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True  # uvicorn logs an error for a rejected one otherwise
        if self._received:
            self._read()  # what the peer sent before the handshake was answered

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not self._is_utf8():
            self.frames = []
            self.conn.fail(CloseCode.INVALID_DATA)  # uvicorn also logs an error
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def _is_utf8(self) -> bool:
        try:
            b"".join(self.frames).decode()
        except UnicodeDecodeError:
            return False
        return True
