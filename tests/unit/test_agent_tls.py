"""An agent's TLS files: named when they cannot be used, read again when renewed."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from structlog.types import EventDict

from agent.cli import main
from agent.tls import TlsConfig, UnusableFileError
from tests.support.authority import Authority


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"ca_file": "nowhere.pem"}, "NODE_AGENT_CA_FILE: .*nowhere.pem: .*No such file"),
        ({"certificate": "client.crt"}, "NODE_AGENT_CERTIFICATE: .*client.crt: "),
        ({"certificate": "locked.crt", "key": "locked.key"}, "NODE_AGENT_CERTIFICATE: "),
        ({"certificate": "client.crt", "key": "server.key"}, "NODE_AGENT_CERTIFICATE: .*mismatch"),
        (
            {"key": "client.key"},
            "NODE_AGENT_KEY: .*client.key: is a private key without a certificate",
        ),
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
    trust = TlsConfig(authority.certificate, shown.certificate, shown.key)
    first = trust.load_context(url)
    assert trust.load_context(url) is first
    authority.client("gpu-1")
    second = trust.load_context(url)
    assert second is not first
    os.truncate(shown.key, 50)
    for _ in range(3):
        assert trust.load_context(url) is second
    assert [event["event"] for event in logged] == ["tls_files.rejected"]
    with pytest.raises(UnusableFileError):
        TlsConfig(authority.certificate, shown.certificate, shown.key).load_context(url)
