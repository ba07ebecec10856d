"""The agent and its clients over TLS: whom they trust, what they show, and how that is renewed."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.types import EventDict

from agent.cli import main
from agent.client import RegistryAwayError
from agent.follow import follow_available_nodes
from agent.replies import Bookmark
from agent.router_client import RegistryClient
from agent.tls import Trust, UnusableFileError
from tests.process.test_end_to_end import BIN, running
from tests.support.authority import Authority
from tests.support.live_server import LiveServer, StartServer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def secure(start_server: StartServer, authority: Authority) -> AsyncIterator[LiveServer]:
    """Its `url` says https; its own client does not."""
    pair = authority.server()
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    async with start_server(**files, tls_client_ca=authority.certificate) as live:
        yield LiveServer(live.url.replace("http", "https"), live.services, live.http)


async def test_a_router_asks_and_follows_over_tls(secure: LiveServer, authority: Authority) -> None:
    trust = Trust(authority.certificate)
    async with RegistryClient(secure.url, trust=trust) as client:
        assert len((await client.get_nodes()).value) == 2
        async with aclosing(client.follow_status_changes()) as events:
            assert await anext(events) == Bookmark(revision=2)
    async with aclosing(follow_available_nodes(secure.url, trust=trust)) as told:
        assert (await anext(told)).revision == 2


async def test_a_registry_that_is_not_trusted_is_away(secure: LiveServer, tmp_path: Path) -> None:
    trust = Trust(Authority(tmp_path, "authority-of-another").certificate)
    async with RegistryClient(secure.url, trust=trust) as client:
        with pytest.raises(RegistryAwayError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get_nodes()


async def test_a_registry_that_does_not_trust_the_agent_is_away(
    secure: LiveServer, authority: Authority, tmp_path: Path
) -> None:
    shown = Authority(tmp_path, "authority-of-another").client("router-1")
    trust = Trust(authority.certificate, shown.certificate, shown.key)
    async with RegistryClient(secure.url, trust=trust) as client:
        with pytest.raises(RegistryAwayError):
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
    async with running(BIN / "node-agent", "bootstrap", "--node-id", "gpu-1", **said) as process:
        await process.line("status +ONLINE")
    only_the_place = {"NODE_AGENT_STATE_DIR": said["NODE_AGENT_STATE_DIR"]}
    async with running(BIN / "node-agent", "status", **only_the_place) as process:
        await process.line("node id +gpu-1")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"ca_file": "nowhere.pem"}, "NODE_AGENT_CA_FILE: .*nowhere.pem: .*No such file"),
        ({"certificate": "client.crt"}, "NODE_AGENT_CERTIFICATE: .*client.crt: "),
        ({"certificate": "locked.crt", "key": "locked.key"}, "NODE_AGENT_CERTIFICATE: "),
        ({"certificate": "client.crt", "key": "server.key"}, "NODE_AGENT_CERTIFICATE: .*mismatch"),
        ({"key": "client.key"}, "NODE_AGENT_KEY: .*client.key: is the key of no certificate"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    authority: Authority, tmp_path: Path, said: dict[str, str], named: str
) -> None:
    authority.client("gpu-1")
    authority.server()
    authority.server("locked", password=b"secret")
    options = [f"--{name.replace('_', '-')}={tmp_path / path}" for name, path in said.items()]
    state = f"--state-dir={tmp_path / 'state'}"
    result = CliRunner().invoke(main, ["bootstrap", state, *options])
    assert result.exit_code == 2
    assert re.fullmatch(f"Error: {named}.*\n", result.stderr)


def test_renewed_files_are_used_by_the_next_connection(
    authority: Authority, logged: list[EventDict]
) -> None:
    url = "https://registry.example"
    shown = authority.client("gpu-1")
    trust = Trust(authority.certificate, shown.certificate, shown.key)
    first = trust.context(url)
    assert trust.context(url) is first
    authority.client("gpu-1")
    second = trust.context(url)
    assert second is not first
    os.truncate(shown.key, 50)
    for _ in range(3):
        assert trust.context(url) is second
    assert [event["event"] for event in logged] == ["trust.unusable"]
    with pytest.raises(UnusableFileError):
        Trust(authority.certificate, shown.certificate, shown.key).context(url)
