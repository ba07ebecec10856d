"""Guards that end the connections of peers that stall, flood, stay silent or have vanished.

The connection of a peer that floods or does not read is reset: an orderly close would queue behind
the unsent data, and keep its memory for minutes.
"""

import asyncio
from functools import partial
from typing import TypeGuard

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from db.core.errors import RateLimited
from graph.auth.client_certificate import store_peer_certificate
from graph.auth.connection_limits import ConnectionLimits
from graph.auth.rate_limiter import RateLimiter
from graph.core.settings import Settings
from graph.server.connection_reset import reset_connection
from graph.server.fair_queue import FairQueue
from graph.server.message_bounds import BoundedMessages
from graph.server.request_bounds import BoundedRequests
from graph.transport.sse import IS_STREAM

_FRAMES_PER_SECOND = 1000


class _SendDeadline(asyncio.Protocol):
    """A mixin for uvicorn's protocols that resets the connection of a peer which reads nothing.

    A slow reader is not a stalled one, however long it takes to read everything.
    """

    stalled_seconds: float
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _deadline: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_deadline(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _start_deadline(self, unsent: int) -> None:
        self._deadline = self.loop.call_later(self.stalled_seconds, self._check_progress, unsent)

    def _check_progress(self, unsent_before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < unsent_before:
            self._start_deadline(unsent)
        else:
            reset_connection(self.transport)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def is_long_lived(
    connection: object,
) -> TypeGuard[HttpToolsProtocol | WebSocketsSansIOProtocol]:
    """Return whether the connection is a websocket or event stream, whose client reconnects."""
    websocket = isinstance(connection, WebSocketsSansIOProtocol)
    return websocket or (isinstance(connection, HttpToolsProtocol) and _is_streaming(connection))


def _is_streaming(connection: HttpToolsProtocol) -> bool:
    cycle: RequestResponseCycle | None = connection.cycle
    return cycle is not None and not cycle.response_complete and IS_STREAM in cycle.scope


class _RequestDeadline(HttpToolsProtocol):
    """A mixin that closes a connection without a complete request; uvicorn would wait for ever.

    Parts of a request, and of a body that nobody reads, do not extend the deadline.
    """

    first_request_seconds: float
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request(self.first_request_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_idle_timer()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        self._cancel_idle_timer()
        super().handle_websocket_upgrade()
        # Parser and protocol refer to each other, and only the garbage collector would free them.
        self.parser = None  # type: ignore[assignment]  # uvicorn does so when a connection ends

    def _expect_request(self, seconds: float) -> None:
        self._idle_timer = self.loop.call_later(seconds, self._check_idle, self.cycle)

    def _check_idle(self, request_before: RequestResponseCycle | None) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is request_before and (cycle is None or cycle.response_complete):
            self.transport.close()
        else:
            self._expect_request(self.timeout_keep_alive)

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()


class _FrameLimit(WebSocketsSansIOProtocol):
    """A mixin that limits pings, pongs and message fragments, which the app never sees."""

    frame_limiter: RateLimiter

    def handle_ping(self) -> None:
        if self._admit_frame():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._admit_frame():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        if self._admit_frame():
            super().handle_cont(event)

    def _admit_frame(self) -> bool:
        if not self.transport.is_closing():
            try:
                self.frame_limiter.charge(str(self.client))
            except RateLimited:
                reset_connection(self.transport)
        return not self.transport.is_closing()


def _make_websocket_protocol(settings: Settings, limits: ConnectionLimits) -> type[BoundedMessages]:
    """Return uvicorn's websocket protocol with the guards that the settings configure."""

    class WebSocket(_SendDeadline, _FrameLimit, BoundedMessages):
        stalled_seconds = settings.stalled_reader_seconds
        frame_limiter = RateLimiter(
            "frames", per_second=_FRAMES_PER_SECOND, burst=2 * _FRAMES_PER_SECOND
        )

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            limits.remove(self.connection)

        async def run_asgi(self) -> None:
            self.connection.store_in(self.scope["state"])
            store_peer_certificate(self.transport, self.scope["state"])
            await super().run_asgi()

        def keepalive_timeout(self) -> None:
            reset_connection(self.transport)

        def shutdown(self) -> None:
            # Closing a websocket that its client is closing raises, and would end the shutdown.
            if not self.transport.is_closing():
                super().shutdown()

    return WebSocket


def make_http_protocol(settings: Settings, limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP protocol, and its websockets, with the guards that are configured."""
    websocket_class = _make_websocket_protocol(settings, limits)
    shared_queue = FairQueue(asyncio.get_running_loop())

    class Http(_SendDeadline, _RequestDeadline, BoundedRequests):
        stalled_seconds = settings.stalled_reader_seconds
        first_request_seconds = settings.first_request_seconds
        fair_queue = shared_queue

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = self.client[0] if self.client else ""
            self.connection = limits.add(address, partial(reset_connection, transport))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            limits.remove(self.connection)

        def handle_websocket_upgrade(self) -> None:
            self.ws_protocol_class = partial(websocket_class, self.connection, shared_queue)  # type: ignore[assignment]  # uvicorn calls it
            super().handle_websocket_upgrade()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.connection.store_in(self.scope["state"])
            store_peer_certificate(self.transport, self.scope["state"])

        def shutdown(self) -> None:
            if _is_streaming(self):
                self.transport.close()  # without a last event, so that the client reconnects
            else:
                super().shutdown()

    return Http
