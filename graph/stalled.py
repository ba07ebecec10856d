"""Readers that stall: a websocket whose buffers stay full is cut, not closed."""

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


def aborting_protocol(after_seconds: float) -> type[WebSocketsSansIOProtocol]:
    """The protocol of uvicorn, with a deadline for what is sent.

    A close would queue behind what the reader does not take, and keep its memory for minutes.
    """

    class Aborting(WebSocketsSansIOProtocol):
        _deadline: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._deadline = self.loop.call_later(after_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_deadline()
            super().connection_lost(exc)

        def _forget_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Aborting
