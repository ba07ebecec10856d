"""A minimal client of graphql-transport-ws that sends exactly the messages of a test."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

PROTOCOL = "graphql-transport-ws"
SECONDS = 10


@dataclass(frozen=True)
class Client:
    """A websocket client; each wait is limited to 10 seconds."""

    socket: ClientConnection

    async def send(self, message: object) -> None:
        """Send any JSON as a text message."""
        await self.socket.send(orjson.dumps(message).decode())

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            message: dict[str, Any] = orjson.loads(await self.socket.recv())
        return message

    async def subscribe(self, operation_id: str, query: str, **variables: Any) -> None:
        """Start an operation of any kind."""
        payload = {"query": query, "variables": variables}
        await self.send({"id": operation_id, "type": "subscribe", "payload": payload})

    async def wait_for_close(self) -> tuple[int, str]:
        """Return the close code and reason of the server; 1006 if the connection is cut."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as wait_for_close:
            return (
                (1006, "")
                if wait_for_close.rcvd is None
                else (wait_for_close.rcvd.code, wait_for_close.rcvd.reason)
            )


@asynccontextmanager
async def open_websocket(
    url: str,
    subprotocols: Sequence[str] = (PROTOCOL,),
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    """Open a connection without sending a message."""
    protocols = [Subprotocol(name) for name in subprotocols] or None
    async with open_socket(
        url, subprotocols=protocols, additional_headers=headers, ping_interval=None, **options
    ) as socket:
        yield Client(socket)


@asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Client]:
    """Open a connection that is initialised and acknowledged."""
    async with open_websocket(url, **options) as client:
        await client.send({"type": "connection_init"})
        assert await client.receive() == {"type": "connection_ack"}
        yield client
