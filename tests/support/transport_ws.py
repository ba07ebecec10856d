"""A client of graphql-transport-ws as plain as the protocol: what a test sends is what goes out."""

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
    """Whatever it waits for must come within 10 seconds."""

    socket: ClientConnection

    async def send(self, message: object) -> None:
        """Any JSON, as text."""
        await self.socket.send(orjson.dumps(message).decode())

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            message: dict[str, Any] = orjson.loads(await self.socket.recv())
        return message

    async def subscribe(self, operation_id: str, query: str, **variables: Any) -> None:
        """Begins an operation of any kind."""
        payload = {"query": query, "variables": variables}
        await self.send({"id": operation_id, "type": "subscribe", "payload": payload})

    async def closed(self) -> tuple[int, str]:
        """The code and reason that the server ends the connection with; 1006 when it is cut."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            return (1006, "") if closed.rcvd is None else (closed.rcvd.code, closed.rcvd.reason)


@asynccontextmanager
async def open_websocket(
    url: str,
    subprotocols: Sequence[str] = (PROTOCOL,),
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    """A connection on which nothing was sent yet."""
    offered = [Subprotocol(name) for name in subprotocols] or None
    async with open_socket(
        url, subprotocols=offered, additional_headers=headers, ping_interval=None, **options
    ) as socket:
        yield Client(socket)


@asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Client]:
    """A connection that is initialised and acknowledged."""
    async with open_websocket(url, **options) as client:
        await client.send({"type": "connection_init"})
        assert await client.receive() == {"type": "connection_ack"}
        yield client
