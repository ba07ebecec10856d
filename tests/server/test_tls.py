"""TLS over real sockets: accepted versions, client certificates and stalled readers."""

import asyncio
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import psutil
import pytest
from sqlalchemy import URL

from tests.support.api import CHANGES, beat, register
from tests.support.authority import Authority, make_client_context, make_tls_settings
from tests.support.big_responses import make_big_query, make_request
from tests.support.live_server import LiveServer, StartServer
from tests.support.processes import BIN, FAST, run_program
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

SECONDS = 10


@asynccontextmanager
async def run_tls_server(
    start_server: StartServer, authority: Authority, **options: Any
) -> AsyncIterator[LiveServer]:
    """Start a server with TLS; yield it with an https `url` and client."""
    async with start_server(**make_tls_settings(authority.server()), **options) as live:
        url = live.url.replace("http", "https")
        async with httpx.AsyncClient(base_url=url, verify=make_client_context(authority)) as http:
            yield LiveServer(url, live.services, http)


async def test_every_transport_works_over_tls(
    start_server: StartServer, authority: Authority
) -> None:
    async with run_tls_server(start_server, authority) as server:
        await register(server, "a")
        assert (await beat(server, "a", 1))["status"] == "ONLINE"
        context = make_client_context(authority)
        async with (
            connect(server.websocket_url, ssl=context) as client,
            server.http.stream(
                "POST",
                "/graphql",
                headers={"accept": "text/event-stream"},
                json={"query": CHANGES, "variables": {"after": "0"}},
            ) as stream,
            asyncio.timeout(SECONDS),
        ):
            await client.subscribe("1", CHANGES, after="0")
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            lines = stream.aiter_lines()
            line = await anext(lines)
            while not line.startswith("data: "):
                line = await anext(lines)
            assert orjson.loads(line.removeprefix("data: "))["data"]["nodeStatusChanges"] == event
            assert event["change"]["revision"] == "1"


async def test_worker_processes_serve_tls_and_announce_https(
    database_url: URL, authority: Authority
) -> None:
    pair = authority.server()
    environment = FAST | {
        "NODE_REGISTRY_DATABASE_URL": database_url.render_as_string(hide_password=False),
        "NODE_REGISTRY_TLS_CERTIFICATE": str(pair.certificate),
        "NODE_REGISTRY_TLS_KEY": str(pair.key),
    }
    async with run_program(
        BIN / "node-registry", "serve", "--workers", "2", **environment
    ) as process:
        url = (await process.wait_for_line(r"GraphQL +(https://\S+)")).group(1)
        for _ in range(10):
            async with (
                connect(url.replace("https", "wss"), ssl=make_client_context(authority)) as client,
                httpx.AsyncClient(verify=make_client_context(authority)) as http,
            ):
                await client.subscribe("1", "{ __typename }")
                assert (await client.receive())["payload"] == {"data": {"__typename": "Query"}}
                assert (await http.get(url.replace("graphql", "health"))).status_code == 200
        assert await process.stop(signal.SIGTERM) == 0


async def test_plain_http_and_old_tls_versions_are_rejected(
    start_server: StartServer, authority: Authority
) -> None:
    async with run_tls_server(start_server, authority) as server:
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.RemoteProtocolError):
                await plain.get(server.url.replace("https", "http"))
        old = make_client_context(authority)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        new = make_client_context(authority)
        new.maximum_version = ssl.TLSVersion.TLSv1_2
        for context, is_accepted in ((old, False), (new, True)):
            async with httpx.AsyncClient(verify=context) as http:
                try:
                    assert (await http.get(f"{server.url}/health/live")).status_code == 200
                    assert is_accepted
                except httpx.ConnectError:
                    assert not is_accepted


@asynccontextmanager
async def request_big_response(
    server: LiveServer, authority: Authority
) -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """Request a response of 12 MB over small buffers; yield its reader and the socket."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    plain.setblocking(False)  # noqa: FBT003  # the socket API takes it by position
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", httpx.URL(server.url).port))
    reader, writer = await asyncio.open_connection(
        sock=plain, ssl=make_client_context(authority), server_hostname="localhost", limit=16 * 1024
    )
    writer.write(make_request(make_big_query(12)))
    try:
        yield reader, plain
    finally:
        writer.transport.abort()


def is_open_at_server(client: socket.socket) -> bool:
    """Return whether the server's end is open; server and client share this process."""
    address = client.getsockname()
    return any(
        connection.raddr == address for connection in psutil.Process().net_connections("tcp")
    )


async def test_stalled_reader_is_cut_and_slow_reader_is_not(
    start_server: StartServer, authority: Authority
) -> None:
    options = {"stalled_reader_seconds": 0.4, "max_query_aliases": 500, "max_query_tokens": 9999}
    async with (
        run_tls_server(start_server, authority, **options) as server,
        asyncio.timeout(3 * SECONDS),
    ):
        await register(server, "a", metadata={"much": "x" * 50_000})
        async with (
            request_big_response(server, authority) as (_, stalled),
            request_big_response(server, authority) as (slow, slow_socket),
        ):
            loop = asyncio.get_running_loop()
            began, received = loop.time(), b""
            while not received.endswith(b"}}}"):
                received += await slow.read(128 * 1024)
                await asyncio.sleep(0.004)
            assert loop.time() - began > 0.8
            assert len(received) > 12_000_000
            assert is_open_at_server(slow_socket)
            await wait_until(lambda: not is_open_at_server(stalled), seconds=60, interval=0.02)


async def test_agent_with_a_client_certificate_acts_for_its_own_node_only(
    start_server: StartServer, authority: Authority
) -> None:
    pair, ca = authority.server(), authority.certificate
    async with start_server(auth="required", **make_tls_settings(pair, ca)) as live:
        url = live.url.replace("http", "https")
        context = make_client_context(authority, authority.client("gpu-1"))
        async with (
            httpx.AsyncClient(base_url=url, verify=context) as http,
            httpx.AsyncClient(
                base_url=url, verify=make_client_context(authority)
            ) as anonymous_http,
        ):
            server = LiveServer(url, live.services, http)
            registered = await register(server, "gpu-1")
            assert registered["node"]["nodeId"] == "gpu-1"
            await beat(server, "gpu-1", 1)
            forbidden = await server.post('{ node(nodeId: "gpu-2") { id } }')
            assert forbidden["errors"][0]["extensions"]["code"] == "FORBIDDEN"
            rejected = await anonymous_http.post(
                "/graphql", json={"query": "{ registry { revision } }"}
            )
            assert rejected.status_code == 401
