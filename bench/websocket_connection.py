"""A websocket that sends its next message once the one before was answered."""

from collections.abc import Iterator

from bench.websocket_client import Socket, dial


class Talker:
    """Until it is told to stop. An answer has so many `parts`, none with errors."""

    def __init__(self, socket: Socket, messages: Iterator[str], parts: int) -> None:
        self._socket = socket
        self._messages = messages
        self._parts = self._missing = parts
        self._stopped = False
        self._refused = ""
        self.answers = 0
        self.answer = b""
        socket.on_message = self._hear
        socket.send(next(messages))

    @property
    def failure(self) -> str:
        hung_up = self._socket.closed and not self._stopped
        return "the server hung up" if hung_up else self._refused

    def stop(self) -> None:
        self._stopped = True
        self._socket.close()

    def _hear(self, message: bytes) -> None:
        if b'"type":"error"' in message or b'"errors":' in message:
            self._refused = message.decode()
            return
        if self._missing == self._parts:
            self.answer = message
        self._missing -= 1
        if self._missing == 0:
            self.answers += 1
            self._missing = self._parts
            self._socket.send(next(self._messages))


async def operations(port: int, messages: Iterator[str]) -> Talker:
    """On graphql-transport-ws, where an operation is answered by its result and its end."""
    socket = await dial(port, "/graphql")
    socket.expect(1)
    socket.send('{"type":"connection_init"}')
    await socket.all_come()
    return Talker(socket, messages, parts=2)


async def echoes(port: int, messages: Iterator[str]) -> Talker:
    return Talker(await dial(port, "/echo"), messages, parts=1)
