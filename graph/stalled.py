"""Peers that stall or are gone: their connections are cut, never closed.

A close would queue behind what they do not take, and keep its memory for minutes.
"""

import asyncio
import socket
import struct
from typing import TypeGuard

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from graph.sse import IS_STREAM
from graph.tls import show_peer

_NO_LINGER = struct.pack("ii", 1, 0)


class _SendDeadline(asyncio.Protocol):
    """Goes before a protocol of uvicorn's: whoever takes nothing for so long is cut.

    A slow reader is none that stalls, however long it takes for all of it.
    """

    stalled_seconds: float
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _deadline: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_less_than(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def cut(self) -> None:
        """With a reset: the system, too, forgets what was not sent."""
        plain: socket.socket = self.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _expect_less_than(self, unsent: int) -> None:
        self._deadline = self.loop.call_later(self.stalled_seconds, self._judge, unsent)

    def _judge(self, unsent_before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < unsent_before:
            self._expect_less_than(unsent)
        else:
            self.cut()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def stays_open(
    connection: object,
) -> TypeGuard[HttpToolsProtocol | WebSocketsSansIOProtocol]:
    """Whether its client has to be told to go, and comes back."""
    websocket = isinstance(connection, WebSocketsSansIOProtocol)
    return websocket or (isinstance(connection, HttpToolsProtocol) and _streams(connection))


def _streams(connection: HttpToolsProtocol) -> bool:
    cycle: RequestResponseCycle | None = connection.cycle
    return cycle is not None and not cycle.response_complete and IS_STREAM in cycle.scope


def http_protocol(after_seconds: float) -> type[HttpToolsProtocol]:
    class Http(_SendDeadline, HttpToolsProtocol):
        stalled_seconds = after_seconds

        def on_message_begin(self) -> None:
            super().on_message_begin()
            show_peer(self.transport, self.scope["state"])

        def shutdown(self) -> None:
            if _streams(self):
                self.transport.close()  # without a last event: the client comes back elsewhere
            else:
                super().shutdown()

    return Http


def websocket_protocol(after_seconds: float) -> type[WebSocketsSansIOProtocol]:
    class WebSocket(_SendDeadline, WebSocketsSansIOProtocol):
        stalled_seconds = after_seconds

        async def run_asgi(self) -> None:
            show_peer(self.transport, self.scope["state"])
            await super().run_asgi()

        def keepalive_timeout(self) -> None:
            self.cut()

        def shutdown(self) -> None:
            # The goodbye to one that has said its own raises, and would end the shutdown.
            if not self.transport.is_closing():
                super().shutdown()

    return WebSocket
