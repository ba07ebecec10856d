import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner, Result

from agent import identity
from agent.cli import main
from agent.identity import lock_directory

# The port of the discard service (RFC 863), which is closed on a machine without that service.
UNREACHABLE_URL = "http://127.0.0.1:9/graphql"


def make_environment(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NODE_AGENT_")}
    return {
        **clean,
        "HOME": str(tmp_path),
        "NODE_AGENT_STATE_DIR": str(tmp_path / "s"),
        "NODE_AGENT_SERVICES": "none",
    }


def run_agent(tmp_path: Path, *arguments: str, **variables: str) -> Result:
    """Run a command of the agent in this process, without its logging."""
    environment = {"HOME": str(tmp_path), "NODE_AGENT_STATE_DIR": str(tmp_path / "s"), **variables}
    with patch("agent.cli.configure_logs"):
        return CliRunner(env=environment).invoke(main, arguments)


@contextmanager
def run_waiting_agent(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run an agent that has found its registry unreachable and waits for its next attempt."""
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "--registry-url", UNREACHABLE_URL, *arguments],
        env=make_environment(tmp_path),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert json.loads(process.stderr.readline())["event"] == "request.failed"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "variables", "setting"),
    [
        (["run", "--role", "prod"], {}, "--role"),
        (["bootstrap"], {"NODE_AGENT_TYPE": "toaster"}, "NODE_AGENT_TYPE"),
        (["run"], {"NODE_AGENT_TRANSPORT": "pigeon"}, "NODE_AGENT_TRANSPORT"),
        (["status"], {"NODE_AGENT_REGISTRY_URL": "nowhere"}, "NODE_AGENT_REGISTRY_URL"),
        (["bootstrap", "--node-id", "two words"], {}, "--node-id"),
    ],
)
def test_agent_rejects_an_invalid_setting_in_one_line_that_names_it(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], setting: str
) -> None:
    result = run_agent(tmp_path, *arguments, **variables)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {setting}: ")
    assert result.stderr.count("\n") == 1


def test_status_reports_a_machine_that_never_bootstrapped(tmp_path: Path) -> None:
    result = run_agent(tmp_path, "status")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {tmp_path / 's'} contains no node id: run node-agent bootstrap first\n"
    )
    assert not (tmp_path / "s").exists()


def test_status_reports_an_unreachable_registry_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("node-1\n")
    result = run_agent(tmp_path, "status", "--registry-url", UNREACHABLE_URL)
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: no usable answer from the registry at {UNREACHABLE_URL}: "
    )
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["bootstrap", "run"])
def test_second_agent_on_one_state_directory_exits_with_one_line(
    tmp_path: Path, command: str
) -> None:
    with lock_directory(tmp_path / "s"):
        result = run_agent(tmp_path, command)
    assert result.exit_code == 1
    assert f"another node-agent (process {os.getpid()}) is using it" in result.stderr
    assert result.stderr.count("\n") == 1


def test_agent_does_not_start_with_a_damaged_node_id(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("\n")
    result = run_agent(tmp_path, "run", "--registry-url", UNREACHABLE_URL)
    assert result.exit_code == 1
    assert "contains no node id" in result.stderr


def test_bootstrap_rejects_a_node_id_other_than_the_stored_one(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("node-1\n")
    result = run_agent(tmp_path, "bootstrap", "--node-id", "node-2")
    assert result.exit_code == 2
    assert "already contains 'node-1'" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_a_waiting_agent_at_once_with_status_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    with run_waiting_agent(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["reason"] == number.name


def test_signal_stops_an_agent_whose_registry_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--registry-url", url],
            env=make_environment(tmp_path),
            stderr=subprocess.DEVNULL,
        ) as process:
            listener.settimeout(20)
            peer, _ = listener.accept()
            with peer:
                peer.recv(1)
                process.terminate()
                assert process.wait(timeout=5) == 0


def test_agent_exits_when_its_standard_input_is_closed(tmp_path: Path) -> None:
    with run_waiting_agent(tmp_path, "--exit-with-parent") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=5) == 0


def test_exit_with_parent_requires_a_pipe(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--exit-with-parent"],
        env=make_environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "Error: --exit-with-parent: standard input is not a pipe\n"


def test_agent_stops_normally_when_nobody_reads_its_log(tmp_path: Path) -> None:
    with run_waiting_agent(tmp_path) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.terminate()
        assert process.wait(timeout=5) in {0, 120}  # 120: Python could not flush its stderr


def test_help_lists_the_roles_and_the_default() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "production-router" in result.stdout
    assert "[development-worker]" in result.stdout
