"""The agent and its clients over TLS: whom they trust, what they show, and how that is renewed."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from agent.errors import RegistryUnavailableError
from agent.follow import follow_available_nodes
from agent.replies import Bookmark
from agent.router_client import RegistryClient
from agent.tls import TlsConfig
from tests.support.authority import Authority
from tests.support.live_server import LiveServer, StartServer
from tests.support.processes import BIN, run_program


@pytest.fixture
async def secure(start_server: StartServer, authority: Authority) -> AsyncIterator[LiveServer]:
    """Its `url` says https; its own client does not."""
    pair = authority.server()
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    async with start_server(**files, tls_client_ca=authority.certificate) as live:
        yield LiveServer(live.url.replace("http", "https"), live.services, live.http)


async def test_a_router_asks_and_follows_over_tls(secure: LiveServer, authority: Authority) -> None:
    trust = TlsConfig(authority.certificate)
    async with RegistryClient(secure.url, tls=trust) as client:
        assert len((await client.get_nodes()).value) == 2
        async with aclosing(client.follow_status_changes()) as events:
            assert await anext(events) == Bookmark(revision=2)
    async with aclosing(follow_available_nodes(secure.url, tls=trust)) as told:
        assert (await anext(told)).revision == 2


async def test_a_registry_that_is_not_trusted_is_away(secure: LiveServer, tmp_path: Path) -> None:
    trust = TlsConfig(Authority(tmp_path, "authority-of-another").certificate)
    async with RegistryClient(secure.url, tls=trust) as client:
        with pytest.raises(RegistryUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get_nodes()


async def test_a_registry_that_does_not_trust_the_agent_is_away(
    secure: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    shown = Authority(tmp_path, "authority-of-another").client("router-1")
    trust = TlsConfig(authority.certificate, shown.certificate, shown.key)
    async with RegistryClient(secure.url, tls=trust) as client:
        with pytest.raises(RegistryUnavailableError):
            await client.get_nodes()


async def test_a_node_registers_over_tls_and_keeps_its_files_in_mind(
    secure: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    shown = authority.client("gpu-1")
    said = {
        "NODE_AGENT_STATE_DIR": str(tmp_path / "state"),
        "NODE_AGENT_REGISTRY_URL": secure.url,
        "NODE_AGENT_CA_FILE": str(authority.certificate),
        "NODE_AGENT_CERTIFICATE": str(shown.certificate),
        "NODE_AGENT_KEY": str(shown.key),
    }
    async with run_program(
        BIN / "node-agent", "bootstrap", "--node-id", "gpu-1", **said
    ) as process:
        await process.line("status +ONLINE")
    only_the_place = {"NODE_AGENT_STATE_DIR": said["NODE_AGENT_STATE_DIR"]}
    async with run_program(BIN / "node-agent", "status", **only_the_place) as process:
        await process.line("node id +gpu-1")
