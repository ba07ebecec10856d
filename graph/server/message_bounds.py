"""Bounds on what a websocket holds in memory before its messages are handled."""

from typing import Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.auth.connection_limits import Connection
from graph.server.fair_queue import FairQueue

MAX_UNKNOWN_MESSAGE_BYTES = 64 * 1024
"""Size of a message before the connection is initialised."""

UNKNOWN_CLOSE_SECONDS = 1.0
"""Time for the answer to a close before the connection is initialised."""

FREE_BYTES = 8 * 1024
"""What an unknown peer may send before it waits for its turns: most initialisations."""

_MAX_PART_BYTES = 512


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
        if self.connection.is_known and not self._received:
            super().data_received(data)
            return
        self._received += data
        if self._is_queued:
            self.transport.pause_reading()
        else:
            self._read()

    def read_part(self) -> bool:
        """Read a part in a turn of the queue, and wait for the next turn if there is more."""
        self._is_queued = False
        self._free_bytes = _MAX_PART_BYTES
        self._read()
        if not (self._is_queued or self.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()
        return False

    def _read(self) -> None:
        while self._received and not self.transport.is_closing():
            if self.connection.is_known:
                part, self._received = self._received, b""
            elif self.read_paused:
                return  # until `receive` has returned the messages that wait
            elif self._free_bytes > 0:
                size = min(self._free_bytes, _MAX_PART_BYTES)
                part, self._received = self._received[:size], self._received[size:]
                self._free_bytes -= len(part)
            else:
                self._is_queued = True
                self.transport.pause_reading()
                self._fair_queue.add(self)
                return
            super().data_received(part)

    async def receive(self) -> ASGIReceiveEvent:
        event = await super().receive()
        if self._received and not self._is_queued:
            self._read()
        return event
