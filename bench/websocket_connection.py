"""A websocket that sends its next message as soon as the last one was answered."""

from collections.abc import Iterator

from bench.websocket_client import WebSocketClient, connect, connect_graphql


class WebSocketConnection:
    """A connection that sends one message at a time until `stop()`.

    An answer consists of `parts` messages, of which none may carry an error; an error ends up in
    `failure`, and nothing more is sent.
    """

    def __init__(self, client: WebSocketClient, messages: Iterator[str], parts: int) -> None:
        self._client = client
        self._messages = messages
        self._parts = self._missing_parts = parts
        self._stopped = False
        self._error = ""
        self.answer_count = 0
        self.last_answer = b""
        client.on_message = self._receive
        client.send(next(messages))

    @property
    def failure(self) -> str:
        was_closed = self._client.closed and not self._stopped
        return "the server closed the connection" if was_closed else self._error

    def stop(self) -> None:
        self._stopped = True
        self._client.close()

    def _receive(self, message: bytes) -> None:
        if b'"type":"error"' in message or b'"errors":' in message:
            self._error = message.decode()
            return
        if self._missing_parts == self._parts:
            self.last_answer = message
        self._missing_parts -= 1
        if self._missing_parts == 0:
            self.answer_count += 1
            self._missing_parts = self._parts
            self._client.send(next(self._messages))


async def open_graphql_connection(port: int, messages: Iterator[str]) -> WebSocketConnection:
    """Connect by graphql-transport-ws, which answers an operation by `next` and `complete`."""
    return WebSocketConnection(await connect_graphql(port), messages, parts=2)


async def open_echo_connection(port: int, messages: Iterator[str]) -> WebSocketConnection:
    """Connect to the echo server, which answers each message by the same one."""
    return WebSocketConnection(await connect(port, "/echo"), messages, parts=1)
