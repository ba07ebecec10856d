"""TLS on real sockets: client certificates, their identities, and the renewal of files."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import uvloop
from cryptography.x509.oid import ExtendedKeyUsageOID
from starlette.types import Receive, Scope, Send
from structlog.types import EventDict
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidMessage

from db.core.enums import Role
from db.core.identity import Identity
from graph.auth.client_certificate import find_certified_identity
from graph.auth.connection_limits import ConnectionLimits
from graph.core.settings import ConfigurationError, Settings, load_settings
from graph.server.connection_guards import make_http_protocol
from graph.server.tls_context import ReloadingContext, create_tls_context
from tests.support.authority import (
    DAY,
    VALID_FROM,
    Authority,
    Pair,
    make_client_context,
    make_tls_settings,
)
from tests.support.waiting import wait_until

SECONDS = 10
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


async def answer_name(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the name of the caller, over HTTP or a websocket."""
    certified = find_certified_identity(scope)
    name = (certified[0].name if certified else "nobody").encode()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": name})
        await receive()


@dataclass
class TlsServer:
    context: ReloadingContext
    port: int

    async def fetch_name(self, tls_context: ssl.SSLContext) -> str:
        """Return the name that the server answers over HTTP, on a new connection."""
        async with httpx.AsyncClient(verify=tls_context, timeout=SECONDS) as http:
            return (await http.get(f"https://127.0.0.1:{self.port}")).text

    async def fetch_name_by_websocket(self, tls_context: ssl.SSLContext) -> str:
        async with open_socket(f"wss://127.0.0.1:{self.port}", ssl=tls_context) as websocket:
            return bytes(await websocket.recv(decode=False)).decode()


@asynccontextmanager
async def run_server(pair: Pair, client_ca: Path | None = None) -> AsyncIterator[TlsServer]:
    """Serve `answer_name` with the registry's protocols for HTTP and websockets."""
    settings = load_settings(**make_tls_settings(pair, client_ca))
    context = create_tls_context(settings)
    assert context is not None
    server = uvicorn.Server(
        uvicorn.Config(
            answer_name,
            http=make_http_protocol(settings, ConnectionLimits(100, max_per_address=100)),
            ws="websockets-sansio",
            lifespan="off",
            log_config=None,
            ssl_context_factory=lambda *_: context,
            timeout_graceful_shutdown=1,
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server._serve([listening]))  # noqa: SLF001  # without its signals
        await wait_until(lambda: server.started)
        try:
            yield TlsServer(context, listening.getsockname()[1])
        finally:
            server.should_exit = True
            await task


@LOOPS
def test_a_client_certificate_identifies_the_agent_of_its_node(
    run: Run, authority: Authority
) -> None:
    async def scenario() -> None:
        tls_context = make_client_context(authority, authority.client("gpu-1"))
        async with run_server(authority.server(), authority.certificate) as tls_server:
            for _ in range(2):
                assert await tls_server.fetch_name(tls_context) == "tls/gpu-1"
                assert await tls_server.fetch_name_by_websocket(tls_context) == "tls/gpu-1"
            assert await tls_server.fetch_name(make_client_context(authority)) == "nobody"
            assert (
                await tls_server.fetch_name_by_websocket(make_client_context(authority)) == "nobody"
            )

    run(scenario())


@LOOPS
@pytest.mark.parametrize("names", [("a b",), ("gpu-1", "gpu-2"), (), ("jwt/ada",), ("*",)])
def test_a_certificate_without_a_single_node_name_identifies_nobody(
    run: Run, authority: Authority, names: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with run_server(authority.server(), authority.certificate) as tls_server:
            assert (
                await tls_server.fetch_name(
                    make_client_context(authority, authority.client(*names))
                )
                == "nobody"
            )

    run(scenario())


@LOOPS
@pytest.mark.parametrize("problem", ["another authority", "ended", "a server's", "not asked for"])
def test_an_invalid_client_certificate_closes_the_connection(
    run: Run, authority: Authority, tmp_path: Path, problem: str
) -> None:
    stranger = Authority(tmp_path, "authority-of-another")
    pair = {
        "another authority": stranger.client("gpu-1", name="strange"),
        "ended": authority.client("gpu-1", name="ended", ends_at=VALID_FROM + DAY / 2),
        "a server's": authority.client(
            "gpu-1", name="other-purpose", purpose=ExtendedKeyUsageOID.SERVER_AUTH
        ),
        "not asked for": authority.client("gpu-1"),
    }[problem]

    async def scenario() -> None:
        client_ca = None if problem == "not asked for" else authority.certificate
        async with run_server(authority.server(), client_ca) as tls_server:
            if client_ca is None:
                assert await tls_server.fetch_name(make_client_context(authority, pair)) == "nobody"
                return
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await tls_server.fetch_name(make_client_context(authority, pair))
            with pytest.raises((OSError, EOFError, InvalidMessage)):
                await tls_server.fetch_name_by_websocket(make_client_context(authority, pair))
            assert await tls_server.fetch_name(make_client_context(authority)) == "nobody"

    run(scenario())


async def test_the_identity_of_a_certificate_has_its_node_and_expiry(authority: Authority) -> None:
    pair = authority.client("gpu-1", ends_at=VALID_FROM + 3 * DAY)
    certificate = ssl._ssl._test_decode_cert(str(pair.certificate))  # type: ignore[attr-defined]  # noqa: SLF001  # as a connection shows it
    certified = find_certified_identity({"state": {"node_registry.tls_peer": certificate}})
    assert certified == (
        Identity("tls/gpu-1", Role.AGENT, frozenset({"gpu-1"})),
        VALID_FROM + 3 * DAY,
    )


@LOOPS
def test_new_connections_get_a_renewed_certificate_and_old_ones_stay(
    run: Run, authority: Authority, logged: list[EventDict]
) -> None:
    async def scenario() -> None:
        async with (
            run_server(authority.server(), authority.certificate) as tls_server,
            AsyncExitStack() as stack,
        ):
            url = f"https://127.0.0.1:{tls_server.port}"
            client = await stack.enter_async_context(
                httpx.AsyncClient(verify=make_client_context(authority), timeout=SECONDS)
            )
            before = await fetch_certificate(tls_server)
            assert (await client.get(url)).text == "nobody"
            tls_server.context.reload_if_changed()
            assert await fetch_certificate(tls_server) == before
            authority.server()
            tls_server.context.reload_if_changed()
            assert await fetch_certificate(tls_server) != before
            connection = client._transport._pool.connections[0]  # type: ignore[attr-defined]  # noqa: SLF001
            assert (await client.get(url)).text == "nobody"
            assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]  # noqa: SLF001

    async def fetch_certificate(tls_server: TlsServer) -> bytes | None:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", tls_server.port, ssl=make_client_context(authority)
        )
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(
            binary_form=True
        )
        writer.close()
        await writer.wait_closed()
        return certificate

    run(scenario())
    assert [event["event"] for event in logged if event["event"].startswith("tls")] == [
        "tls.renewed"
    ]


@LOOPS
def test_another_client_authority_is_used_for_new_connections(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    other_authority = Authority(tmp_path, "authority-of-another")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(authority.certificate.read_bytes())

    async def scenario() -> None:
        first_context = make_client_context(authority, authority.client("gpu-1"))
        second_context = make_client_context(
            authority, other_authority.client("gpu-2", name="theirs")
        )
        async with run_server(authority.server(), trusted) as tls_server:
            assert await tls_server.fetch_name(first_context) == "tls/gpu-1"
            trusted.write_bytes(other_authority.certificate.read_bytes())
            tls_server.context.reload_if_changed()
            assert await tls_server.fetch_name(second_context) == "tls/gpu-2"
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await tls_server.fetch_name(first_context)

    run(scenario())


def truncate_key(pair: Pair) -> None:
    os.truncate(pair.key, 50)


def remove_certificate(pair: Pair) -> None:
    pair.certificate.unlink()


@pytest.mark.parametrize("damage", [truncate_key, remove_certificate])
async def test_unusable_files_leave_the_old_certificate_in_use(
    authority: Authority, damage: Callable[[Pair], None], logged: list[EventDict]
) -> None:
    pair = authority.server()
    async with run_server(pair, authority.certificate) as tls_server:
        damage(pair)
        for _ in range(3):
            tls_server.context.reload_if_changed()
        assert await tls_server.fetch_name(make_client_context(authority)) == "nobody"
        [failure] = [event for event in logged if event["event"].startswith("tls")]
        assert failure["event"] == "tls.unusable"
        assert failure["setting"] == "tls_certificate"
        logged.remove(failure)
        authority.server()
        tls_server.context.reload_if_changed()
        assert await tls_server.fetch_name(make_client_context(authority)) == "nobody"


async def test_the_files_are_checked_repeatedly(
    authority: Authority, logged: list[EventDict]
) -> None:
    pair = authority.server()
    context = create_tls_context(load_settings(**make_tls_settings(pair)))
    assert context is not None
    task = asyncio.create_task(context.watch_files(0.01))
    authority.server()
    await wait_until(lambda: logged)
    task.cancel()
    assert [event["event"] for event in logged] == ["tls.renewed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tls_certificate": None, "tls_client_ca": None}, "TLS_KEY: needs"),
        ({"tls_certificate": None, "tls_key": None}, "TLS_CLIENT_CA: needs"),
        ({"tls_certificate": "nowhere.pem"}, "TLS_CERTIFICATE: .*No such file"),
        ({"tls_key": None}, "TLS_CERTIFICATE: "),
        ({"tls_key": "of another"}, "TLS_CERTIFICATE: .*mismatch"),
        ({"tls_key": "with a password"}, "TLS_CERTIFICATE: "),
        ({"tls_client_ca": "nowhere.pem"}, "TLS_CLIENT_CA: .*No such file"),
        ({"tls_client_ca": "no certificate"}, "TLS_CLIENT_CA: "),
    ],
)
def test_an_unusable_file_prevents_the_start(
    authority: Authority, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pair = authority.server()
    no_certificate = tmp_path / "empty.pem"
    no_certificate.write_text("nothing")
    files = {
        "of another": authority.server("another").key,
        "with a password": authority.server("locked", password=b"secret").key,
        "no certificate": no_certificate,
    }
    settings = make_tls_settings(pair, authority.certificate) | {
        name: files.get(value, value) for name, value in change.items()
    }
    with pytest.raises(ConfigurationError, match=f"^NODE_REGISTRY_{message}"):
        create_tls_context(Settings(**settings))
