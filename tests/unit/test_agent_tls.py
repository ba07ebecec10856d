"""The agent's TLS files: unusable ones are named, renewed ones are read again."""

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
    ("settings", "message"),
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
def test_an_unusable_file_is_named_in_the_error(
    authority: Authority, tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    authority.client("gpu-1")
    authority.server()
    authority.server("locked", password=b"secret")
    options = [f"--{name.replace('_', '-')}={tmp_path / path}" for name, path in settings.items()]
    state = f"--state-dir={tmp_path / 'state'}"
    result = CliRunner().invoke(main, ["bootstrap", state, *options])
    assert result.exit_code == 2
    assert re.fullmatch(f"Error: {message}.*\n", result.stderr)


def test_renewed_files_are_used_by_the_next_connection(
    authority: Authority, logged: list[EventDict]
) -> None:
    url = "https://registry.example"
    pair = authority.client("gpu-1")
    tls_config = TlsConfig(authority.certificate, pair.certificate, pair.key)
    first = tls_config.load_context(url)
    assert tls_config.load_context(url) is first
    authority.client("gpu-1")
    second = tls_config.load_context(url)
    assert second is not first
    os.truncate(pair.key, 50)
    for _ in range(3):
        assert tls_config.load_context(url) is second
    assert [event["event"] for event in logged] == ["tls_files.rejected"]
    with pytest.raises(UnusableFileError):
        TlsConfig(authority.certificate, pair.certificate, pair.key).load_context(url)
