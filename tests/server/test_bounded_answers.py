"""Every client of the registry and the agent reads a bounded part of an endless answer."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from agent import documents
from agent.bounded_answer import MAX_REPLY_BYTES
from agent.errors import RegistryUnavailableError
from agent.http_transport import HttpTransport
from agent.replies import NodeStatusData
from agent.router_client import RegistryClient
from agent.services import UnreadableAnswerError, find_service
from agent.tls import TlsConfig
from agent.websocket import open_websocket
from db.ops.check_result import Severity
from graph.auth.jwks import BadKeySet, KeyAddress, parse_public_keys
from graph.cli.host_checks import check_port
from graph.core.settings import Settings
from graph.tracing import OTLPTracer

TOTAL_BYTES = 300 << 20
BUFFERED_BYTES = 24 << 20
"""What the kernel's and the streams' buffers on both sides may take without a reader."""
PART = bytes(1 << 16)
BOMB = gzip.compress(b'{"data": "' + bytes(64 << 20) + b'"}')


@dataclass
class EndlessServer:
    """A server that answers each request with 300 MB, and counts what it could send."""

    headers: str = ""
    body: bytes | None = None
    url: str = ""
    sent: int = 0
    requests: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            length = TOTAL_BYTES if self.body is None else len(self.body)
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{self.headers}\r\n"
            writer.write(head.encode())
            if self.body is not None:
                writer.write(self.body)
                await writer.drain()
            else:
                while self.sent < TOTAL_BYTES:
                    writer.write(PART)
                    await writer.drain()
                    self.sent += len(PART)
        writer.close()


@asynccontextmanager
async def run_endless_server(server: EndlessServer) -> AsyncIterator[EndlessServer]:
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield server


async def request_status(url: str) -> None:
    transport = HttpTransport(f"{url}/graphql", None)
    try:
        with pytest.raises(RegistryUnavailableError, match=r"more than|compressed"):
            await transport.execute(documents.NODE_STATUS, {"nodeId": "a"}, NodeStatusData)
    finally:
        await transport.aclose()


async def list_nodes(url: str) -> None:
    async with RegistryClient(url, timeout_seconds=30) as client:
        with pytest.raises(RegistryUnavailableError):
            await client.get_nodes()


async def probe_service(url: str) -> None:
    with suppress(UnreadableAnswerError):
        assert await find_service(url, None) is None


async def fetch_keys(url: str) -> None:
    with pytest.raises(BadKeySet):
        parse_public_keys(await KeyAddress(url).read() or b"")


async def examine_port(url: str) -> None:
    severity, message = await check_port(Settings(http_port=int(url.rpartition(":")[2])))
    assert severity is Severity.FAULT
    assert "taken by something else" in message


async def send_spans(url: str) -> None:
    tracer = OTLPTracer(url)
    with tracer.open_span("a"):
        pass
    await tracer.close()


CLIENTS: list[tuple[Callable[[str], Coroutine[Any, Any, None]], int]] = [
    (request_status, 1),
    (list_nodes, 3 * 64),
    (probe_service, 2),
    (fetch_keys, 1),
    (examine_port, 1),
    (send_spans, 1),
]


@pytest.mark.parametrize(("client", "megabytes"), CLIENTS)
async def test_an_endless_answer_is_not_read(
    client: Callable[[str], Coroutine[Any, Any, None]], megabytes: int
) -> None:
    async with run_endless_server(EndlessServer()) as server:
        await client(server.url)
        assert server.requests
        assert server.sent < (megabytes << 20) + server.requests * BUFFERED_BYTES


@pytest.mark.parametrize("client", [client for client, _ in CLIENTS])
async def test_a_compressed_answer_is_not_expanded(
    client: Callable[[str], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    decompressor = Mock()
    monkeypatch.setattr("zlib.decompressobj", decompressor)
    bomb = EndlessServer("content-encoding: gzip\r\n", BOMB)
    async with run_endless_server(bomb) as server:
        await client(server.url)
        assert server.requests
    decompressor.return_value.decompress.assert_not_called()


@asynccontextmanager
async def run_flooding_websocket(sent: list[int]) -> AsyncIterator[str]:
    """Run a server that answers each operation with a message of 300 MB, frame by frame."""

    async def flood(connection: ServerConnection) -> None:
        with suppress(Exception):
            await connection.recv()
            await connection.send('{"type": "connection_ack"}')
            await connection.recv()

            async def make_parts() -> AsyncIterator[str]:
                yield '{"type": "next", "id": "1", "payload": {"data": "'
                while sum(sent) < TOTAL_BYTES:
                    sent.append(len(PART))
                    yield "x" * len(PART)

            await connection.send(make_parts())

    protocols = [Subprotocol("graphql-transport-ws")]
    async with serve(flood, "127.0.0.1", 0, subprotocols=protocols, compression=None) as server:
        [listening] = server.sockets
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/graphql"


async def test_an_endless_message_ends_the_websocket() -> None:
    sent: list[int] = []
    async with run_flooding_websocket(sent) as url:
        with pytest.raises(RegistryUnavailableError):
            async with open_websocket(url, None, TlsConfig()) as websocket:
                await websocket.execute(documents.REVISION)
    assert sum(sent) < MAX_REPLY_BYTES + BUFFERED_BYTES
