"""A websocket that sends its next message once the one before was answered."""

from collections.abc import Iterator

from bench.websocket_client import WebSocketClient, connect


class WebSocketConnection:
    """Until it is told to stop. An answer has so many `parts`, none with errors."""

    def __init__(self, socket: WebSocketClient, messages: Iterator[str], parts: int) -> None:
        self._socket = socket
        self._messages = messages
        self._parts = self._missing_parts = parts
        self._stopped = False
        self._error = ""
        self.answer_count = 0
        self.last_answer = b""
        socket.on_message = self._receive
        socket.send(next(messages))

    @property
    def failure(self) -> str:
        hung_up = self._socket.closed and not self._stopped
        return "the server hung up" if hung_up else self._error

    def stop(self) -> None:
        self._stopped = True
        self._socket.close()

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
            self._socket.send(next(self._messages))


async def open_graphql_connection(port: int, messages: Iterator[str]) -> WebSocketConnection:
    """On graphql-transport-ws, where an operation is answered by its result and its end."""
    socket = await connect(port, "/graphql")
    socket.expect(1)
    socket.send('{"type":"connection_init"}')
    await socket.wait_for_messages()
    return WebSocketConnection(socket, messages, parts=2)


async def open_echo_connection(port: int, messages: Iterator[str]) -> WebSocketConnection:
    return WebSocketConnection(await connect(port, "/echo"), messages, parts=1)
