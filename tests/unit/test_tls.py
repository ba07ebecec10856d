"""TLS on real sockets: which certificates count, who is known by one, how they are renewed."""

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
from graph.core.settings import ConfigurationError, Settings, load_settings
from graph.server.connection_guards import make_http_protocol, make_websocket_protocol
from graph.server.tls_context import ReloadingContext, create_tls_context
from tests.support.authority import (
    BEGUN,
    DAY,
    Authority,
    Pair,
    make_client_context,
    make_tls_settings,
)
from tests.support.waiting import wait_until

SECONDS = 10
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the name of the caller, over HTTP and over a websocket."""
    known = find_certified_identity(scope)
    name = (known[0].name if known else "nobody").encode()
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": name})
    else:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": name})
        await receive()


@dataclass
class Who:
    context: ReloadingContext
    port: int

    async def asked(self, by: ssl.SSLContext) -> str:
        """On a connection of its own."""
        async with httpx.AsyncClient(verify=by, timeout=SECONDS) as http:
            return (await http.get(f"https://127.0.0.1:{self.port}")).text

    async def asked_by_websocket(self, by: ssl.SSLContext) -> str:
        async with open_socket(f"wss://127.0.0.1:{self.port}", ssl=by) as websocket:
            return bytes(await websocket.recv(decode=False)).decode()


@asynccontextmanager
async def serving(pair: Pair, client_ca: Path | None = None) -> AsyncIterator[Who]:
    """`who`, by the registry's own protocols."""
    settings = load_settings(**make_tls_settings(pair, client_ca))
    context = create_tls_context(settings)
    assert context is not None
    server = uvicorn.Server(
        uvicorn.Config(
            who,
            http=make_http_protocol(settings),
            ws=make_websocket_protocol(settings),
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
            yield Who(context, listening.getsockname()[1])
        finally:
            server.should_exit = True
            await task


@LOOPS
def test_a_certificate_makes_the_agent_of_its_node_known(run: Run, authority: Authority) -> None:
    async def scenario() -> None:
        good = make_client_context(authority, authority.client("gpu-1"))
        async with serving(authority.server(), authority.certificate) as live:
            for _ in range(2):
                assert await live.asked(good) == "tls/gpu-1"
                assert await live.asked_by_websocket(good) == "tls/gpu-1"
            assert await live.asked(make_client_context(authority)) == "nobody"
            assert await live.asked_by_websocket(make_client_context(authority)) == "nobody"

    run(scenario())


@LOOPS
@pytest.mark.parametrize("names", [("a b",), ("gpu-1", "gpu-2"), (), ("jwt/ada",), ("*",)])
def test_a_certificate_that_names_no_node_makes_nobody_known(
    run: Run, authority: Authority, names: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with serving(authority.server(), authority.certificate) as live:
            assert (
                await live.asked(make_client_context(authority, authority.client(*names)))
                == "nobody"
            )

    run(scenario())


@LOOPS
@pytest.mark.parametrize("wrong", ["another authority", "ended", "a server's", "not asked for"])
def test_a_certificate_that_is_not_good_ends_the_connection(
    run: Run, authority: Authority, tmp_path: Path, wrong: str
) -> None:
    stranger = Authority(tmp_path, "authority-of-another")
    shown = {
        "another authority": stranger.client("gpu-1", name="strange"),
        "ended": authority.client("gpu-1", name="ended", ends_at=BEGUN + DAY / 2),
        "a server's": authority.client(
            "gpu-1", name="other-purpose", purpose=ExtendedKeyUsageOID.SERVER_AUTH
        ),
        "not asked for": authority.client("gpu-1"),
    }[wrong]

    async def scenario() -> None:
        asked_for = None if wrong == "not asked for" else authority.certificate
        async with serving(authority.server(), asked_for) as live:
            if asked_for is None:
                assert await live.asked(make_client_context(authority, shown)) == "nobody"
                return
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await live.asked(make_client_context(authority, shown))
            with pytest.raises((OSError, EOFError, InvalidMessage)):
                await live.asked_by_websocket(make_client_context(authority, shown))
            assert await live.asked(make_client_context(authority)) == "nobody"

    run(scenario())


async def test_it_says_until_when_and_for_which_node(authority: Authority) -> None:
    pair = authority.client("gpu-1", ends_at=BEGUN + 3 * DAY)
    shown = ssl._ssl._test_decode_cert(str(pair.certificate))  # type: ignore[attr-defined]  # noqa: SLF001  # as a connection shows it
    known = find_certified_identity({"state": {"node_registry.tls_peer": shown}})
    assert known == (Identity("tls/gpu-1", Role.AGENT, frozenset({"gpu-1"})), BEGUN + 3 * DAY)


@LOOPS
def test_new_connections_get_a_renewed_certificate_and_old_ones_stay(
    run: Run, authority: Authority, logged: list[EventDict]
) -> None:
    async def scenario() -> None:
        async with (
            serving(authority.server(), authority.certificate) as live,
            AsyncExitStack() as up,
        ):
            url = f"https://127.0.0.1:{live.port}"
            kept = await up.enter_async_context(
                httpx.AsyncClient(verify=make_client_context(authority), timeout=SECONDS)
            )
            before = await certificate_of(live)
            assert (await kept.get(url)).text == "nobody"
            live.context.reload_if_changed()
            assert await certificate_of(live) == before
            authority.server()
            live.context.reload_if_changed()
            assert await certificate_of(live) != before
            connection = kept._transport._pool.connections[0]  # type: ignore[attr-defined]  # noqa: SLF001
            assert (await kept.get(url)).text == "nobody"
            assert kept._transport._pool.connections == [connection]  # type: ignore[attr-defined]  # noqa: SLF001

    async def certificate_of(live: Who) -> bytes | None:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", live.port, ssl=make_client_context(authority)
        )
        shown: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return shown

    run(scenario())
    assert [event["event"] for event in logged if event["event"].startswith("tls")] == [
        "tls.renewed"
    ]


@LOOPS
def test_another_authority_for_clients_counts_from_then_on(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "authority-of-another")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(authority.certificate.read_bytes())

    async def scenario() -> None:
        ours = make_client_context(authority, authority.client("gpu-1"))
        theirs = make_client_context(authority, other.client("gpu-2", name="theirs"))
        async with serving(authority.server(), trusted) as live:
            assert await live.asked(ours) == "tls/gpu-1"
            trusted.write_bytes(other.certificate.read_bytes())
            live.context.reload_if_changed()
            assert await live.asked(theirs) == "tls/gpu-2"
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await live.asked(ours)

    run(scenario())


def half(pair: Pair) -> None:
    os.truncate(pair.key, 50)


def gone(pair: Pair) -> None:
    pair.certificate.unlink()


@pytest.mark.parametrize("spoil", [half, gone])
async def test_files_that_are_no_good_leave_the_old_certificate_in_use(
    authority: Authority, spoil: Callable[[Pair], None], logged: list[EventDict]
) -> None:
    pair = authority.server()
    async with serving(pair, authority.certificate) as live:
        spoil(pair)
        for _ in range(3):
            live.context.reload_if_changed()
        assert await live.asked(make_client_context(authority)) == "nobody"
        [told] = [event for event in logged if event["event"].startswith("tls")]
        assert told["event"] == "tls.unusable"
        assert told["setting"] == "tls_certificate"
        logged.remove(told)
        authority.server()
        live.context.reload_if_changed()
        assert await live.asked(make_client_context(authority)) == "nobody"


async def test_the_files_are_looked_at_again_and_again(
    authority: Authority, logged: list[EventDict]
) -> None:
    pair = authority.server()
    context = create_tls_context(load_settings(**make_tls_settings(pair)))
    assert context is not None
    watching = asyncio.create_task(context.watch_files(0.01))
    authority.server()
    await wait_until(lambda: logged)
    watching.cancel()
    assert [event["event"] for event in logged] == ["tls.renewed"]


@pytest.mark.parametrize(
    ("change", "named"),
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
def test_a_file_that_cannot_be_used_stops_the_start(
    authority: Authority, change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    pair = authority.server()
    no_certificate = tmp_path / "empty.pem"
    no_certificate.write_text("nothing")
    files = {
        "of another": authority.server("another").key,
        "with a password": authority.server("locked", password=b"secret").key,
        "no certificate": no_certificate,
    }
    said = make_tls_settings(pair, authority.certificate) | {
        name: files.get(value, value) for name, value in change.items()
    }
    with pytest.raises(ConfigurationError, match=f"^NODE_REGISTRY_{named}"):
        create_tls_context(Settings(**said))
