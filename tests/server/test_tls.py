"""TLS over real sockets: which certificates count, who is known by one, how they are renewed."""

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
async def secure(
    start_server: StartServer, authority: Authority, **given: Any
) -> AsyncIterator[LiveServer]:
    """The whole registry."""
    async with start_server(**make_tls_settings(authority.server()), **given) as live:
        url = live.url.replace("http", "https")
        async with httpx.AsyncClient(base_url=url, verify=make_client_context(authority)) as http:
            yield LiveServer(url, live.services, http)


async def test_everything_is_answered_over_tls(
    start_server: StartServer, authority: Authority
) -> None:
    async with secure(start_server, authority) as server:
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


async def test_processes_that_share_an_address_serve_tls_and_say_so(
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
        url = (await process.line(r"GraphQL +(https://\S+)")).group(1)
        for _ in range(10):
            async with (
                connect(url.replace("https", "wss"), ssl=make_client_context(authority)) as client,
                httpx.AsyncClient(verify=make_client_context(authority)) as http,
            ):
                await client.subscribe("1", "{ __typename }")
                assert (await client.receive())["payload"] == {"data": {"__typename": "Query"}}
                assert (await http.get(url.replace("graphql", "health"))).status_code == 200
        assert await process.stop(signal.SIGTERM) == 0


async def test_what_is_not_tls_or_an_old_one_is_refused(
    start_server: StartServer, authority: Authority
) -> None:
    async with secure(start_server, authority) as server:
        async with httpx.AsyncClient() as plain:
            with pytest.raises(httpx.RemoteProtocolError):
                await plain.get(server.url.replace("https", "http"))
        old = make_client_context(authority)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        new = make_client_context(authority)
        new.maximum_version = ssl.TLSVersion.TLSv1_2
        for context, answered in ((old, False), (new, True)):
            async with httpx.AsyncClient(verify=context) as http:
                try:
                    assert (await http.get(f"{server.url}/health/live")).status_code == 200
                    assert answered
                except httpx.ConnectError:
                    assert not answered


@asynccontextmanager
async def asking_much(
    server: LiveServer, authority: Authority
) -> AsyncIterator[tuple[asyncio.StreamReader, socket.socket]]:
    """The answer has 12 MB, and the buffers on its way are small."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    plain.setblocking(False)  # noqa: FBT003  # as sockets have it
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", httpx.URL(server.url).port))
    reader, writer = await asyncio.open_connection(
        sock=plain, ssl=make_client_context(authority), server_hostname="localhost", limit=16 * 1024
    )
    writer.write(make_request(make_big_query(12)))
    try:
        yield reader, plain
    finally:
        writer.transport.abort()


def held_by_server(client: socket.socket) -> bool:
    """Whether the other end is open: server and client are of one process."""
    ours = client.getsockname()
    return any(each.raddr == ours for each in psutil.Process().net_connections("tcp"))


async def test_a_reader_that_stalls_is_cut_and_a_slow_one_is_not(
    start_server: StartServer, authority: Authority
) -> None:
    given = {"stalled_reader_seconds": 0.4, "max_query_aliases": 500, "max_query_tokens": 9999}
    async with (
        secure(start_server, authority, **given) as server,
        asyncio.timeout(3 * SECONDS),
    ):
        await register(server, "a", metadata={"much": "x" * 50_000})
        async with (
            asking_much(server, authority) as (_, stalled),
            asking_much(server, authority) as (slow, slowly),
        ):
            loop = asyncio.get_running_loop()
            begun, received = loop.time(), b""
            while not received.endswith(b"}}}"):
                received += await slow.read(128 * 1024)
                await asyncio.sleep(0.004)
            assert loop.time() - begun > 0.8
            assert len(received) > 12_000_000
            assert held_by_server(slowly)
            await wait_until(lambda: not held_by_server(stalled), seconds=60, interval=0.02)


async def test_an_agent_with_a_certificate_speaks_for_its_node_alone(
    start_server: StartServer, authority: Authority
) -> None:
    pair, ca = authority.server(), authority.certificate
    async with start_server(auth="required", **make_tls_settings(pair, ca)) as live:
        url = live.url.replace("http", "https")
        known = make_client_context(authority, authority.client("gpu-1"))
        async with (
            httpx.AsyncClient(base_url=url, verify=known) as http,
            httpx.AsyncClient(base_url=url, verify=make_client_context(authority)) as nobody,
        ):
            server = LiveServer(url, live.services, http)
            registered = await register(server, "gpu-1")
            assert registered["node"]["nodeId"] == "gpu-1"
            await beat(server, "gpu-1", 1)
            refused = await server.post('{ node(nodeId: "gpu-2") { id } }')
            assert refused["errors"][0]["extensions"]["code"] == "FORBIDDEN"
            stranger = await nobody.post("/graphql", json={"query": "{ registry { revision } }"})
            assert stranger.status_code == 401
