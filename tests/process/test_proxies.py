"""The documented configurations of proxies, each tried where the proxy is installed."""

import asyncio
import re
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.core.database import Database
from tests.support.api import CHANGES, MAINTENANCE
from tests.support.authority import Authority
from tests.support.fleet import fetch_rows
from tests.support.live_server import LiveServer, StartServer
from tests.support.paths import ROOT
from tests.support.processes import run_program
from tests.support.registry_process import find_free_port
from tests.support.transport_ws import open_websocket
from tests.support.waiting import wait_until

GUIDE = ROOT / "docs/how-to/run-behind-a-proxy.md"
CLIENT = "127.0.0.2"
"""The address that clients have here, another than the proxy's."""
SPOOFED = {
    "x-forwarded-for": "203.0.113.7",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "http",
    "forwarded": "for=203.0.113.7;host=evil.example;proto=http",
}
WRAPPERS = {
    "nginx": (
        "daemon off; pid {folder}/pid; error_log {folder}/log;{user} events {{}} http {{"
        " access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;"
        " fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"
        " {configuration} }}"
    ),
    "caddy": "{{\n admin off\n auto_https disable_redirects\n}}\n{configuration}",
    "haproxy": "{configuration}",
}
COMMANDS = {
    "nginx": ("-e", "stderr", "-c"),
    "caddy": ("run", "--adapter", "caddyfile", "--config"),
    "haproxy": ("-f",),
}
LANGUAGES = {"nginx": "nginx", "caddy": "caddyfile", "haproxy": "haproxy"}


def find_program(name: str) -> str:
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def make_configuration(proxy: str, registry_url: str, port: int, folder: Path) -> str:
    """Return the documented configuration with the ports and paths of a test."""
    [documented] = re.findall(rf"```{LANGUAGES[proxy]}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    configuration = (
        documented.replace("127.0.0.1:9205", registry_url.removeprefix("http://"))
        .replace("/etc/ssl/registry", str(folder))
        .replace("listen 443", f"listen 127.0.0.1:{port}")
        .replace("bind :443", f"bind 127.0.0.1:{port}")
        .replace("registry.example:443", f"https://127.0.0.1:{port}")
    )
    # Root's folders are closed to the user that nginx would change to.
    user = " user root;" if Path(folder).owner() == "root" else ""
    return WRAPPERS[proxy].format(configuration=configuration, folder=folder, user=user)


@asynccontextmanager
async def run_proxy(proxy: str, server: LiveServer, folder: Path) -> AsyncIterator[str]:
    """Yield the address of a proxy for https in front of the registry."""
    program = find_program(proxy)
    port = find_free_port()
    pair = Authority(folder).server()
    (folder / "certificate.pem").write_bytes(pair.certificate.read_bytes())
    (folder / "key.pem").write_bytes(pair.key.read_bytes())
    (folder / "both.pem").write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    path = folder / "configuration"
    path.write_text(make_configuration(proxy, server.url, port, folder))
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    url = f"https://127.0.0.1:{port}"
    async with run_program(program, *COMMANDS[proxy], path, **home) as process:
        try:
            async with open_client(url, folder) as client:
                await wait_until(lambda: is_answering(client), seconds=20)
            yield url
        finally:
            await process.stop(signal.SIGTERM)  # a killed nginx would leave its workers


async def is_answering(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/live")).is_success
    except httpx.TransportError:
        return False


def make_context(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "authority.pem")


def open_client(url: str, folder: Path) -> httpx.AsyncClient:
    context = make_context(folder)
    transport = httpx.AsyncHTTPTransport(verify=context, local_address=CLIENT)
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=10)


@pytest.mark.parametrize("proxy", ["nginx", "caddy", "haproxy"])
async def test_a_proxy_forwards_addresses_origins_websockets_and_event_streams(
    start_server: StartServer, database: Database, tmp_path: Path, proxy: str
) -> None:
    find_program(proxy)
    async with (
        start_server(trusted_proxies="127.0.0.1", bookmark_interval_seconds=0.1) as server,
        run_proxy(proxy, server, tmp_path) as url,
        open_client(url, tmp_path) as client,
    ):
        streaming = client.stream(
            "POST",
            "/graphql",
            json={"query": CHANGES},
            headers={"accept": "text/event-stream", **SPOOFED},
        )
        async with streaming as response:
            parts = response.aiter_text()
            assert "Bookmark" in await anext(parts)
            maintenance = {"nodeId": "node-2-macbook-m4max", "enabled": True}
            changed = await client.post(
                "/graphql",
                json={"query": MAINTENANCE, "variables": {"input": maintenance}},
                headers=SPOOFED,
            )
            assert "errors" not in changed.json()
            async with asyncio.timeout(10):
                while "MAINTENANCE_STARTED" not in await anext(parts):
                    pass
        recorded = await fetch_rows(database, "SELECT address, peer_address FROM audit_log")
        assert recorded == [(CLIENT, "127.0.0.1")]

        websocket_url = url.replace("https", "wss") + "/graphql"
        options: dict[str, Any] = {"ssl": make_context(tmp_path), "local_addr": (CLIENT, 0)}
        for origin in ("https://evil.example", url.replace("https", "http"), "http://evil.example"):
            with pytest.raises(Exception, match="403"):
                async with open_websocket(
                    websocket_url, headers={"origin": origin, **SPOOFED}, **options
                ):
                    pass
        async with open_websocket(
            websocket_url, headers={"origin": url, **SPOOFED}, **options
        ) as socket:
            await socket.send({"type": "connection_init"})
            assert await socket.receive() == {"type": "connection_ack"}
            await socket.subscribe("1", CHANGES)
            assert (await socket.receive())["type"] == "next"
