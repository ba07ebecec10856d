"""The agent and its clients over TLS: trusted authorities, client certificates, stored paths."""

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
async def tls_server(start_server: StartServer, authority: Authority) -> AsyncIterator[LiveServer]:
    """Yield a server whose `url` is https; its `http` client connects without TLS."""
    pair = authority.server()
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    async with start_server(**files, tls_client_ca=authority.certificate) as live:
        yield LiveServer(live.url.replace("http", "https"), live.services, live.http)


async def test_router_client_queries_and_follows_over_tls(
    tls_server: LiveServer, authority: Authority
) -> None:
    trust = TlsConfig(authority.certificate)
    async with RegistryClient(tls_server.url, tls=trust) as client:
        assert len((await client.get_nodes()).value) == 2
        async with aclosing(client.follow_status_changes()) as events:
            assert await anext(events) == Bookmark(revision=2)
    async with aclosing(follow_available_nodes(tls_server.url, tls=trust)) as events:
        assert (await anext(events)).revision == 2


async def test_untrusted_registry_is_unavailable(tls_server: LiveServer, tmp_path: Path) -> None:
    trust = TlsConfig(Authority(tmp_path, "authority-of-another").certificate)
    async with RegistryClient(tls_server.url, tls=trust) as client:
        with pytest.raises(RegistryUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get_nodes()


async def test_registry_that_does_not_trust_the_client_certificate_is_unavailable(
    tls_server: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    pair = Authority(tmp_path, "authority-of-another").client("router-1")
    trust = TlsConfig(authority.certificate, pair.certificate, pair.key)
    async with RegistryClient(tls_server.url, tls=trust) as client:
        with pytest.raises(RegistryUnavailableError):
            await client.get_nodes()


async def test_node_registers_over_tls_and_remembers_the_paths_of_its_files(
    tls_server: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.client("gpu-1")
    environment = {
        "NODE_AGENT_STATE_DIR": str(tmp_path / "state"),
        "NODE_AGENT_REGISTRY_URL": tls_server.url,
        "NODE_AGENT_CA_FILE": str(authority.certificate),
        "NODE_AGENT_CERTIFICATE": str(pair.certificate),
        "NODE_AGENT_KEY": str(pair.key),
    }
    async with run_program(
        BIN / "node-agent", "bootstrap", "--node-id", "gpu-1", **environment
    ) as process:
        await process.wait_for_line("status +ONLINE")
    state_dir_only = {"NODE_AGENT_STATE_DIR": environment["NODE_AGENT_STATE_DIR"]}
    async with run_program(BIN / "node-agent", "status", **state_dir_only) as process:
        await process.wait_for_line("node id +gpu-1")
