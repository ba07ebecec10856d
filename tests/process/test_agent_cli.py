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

# Discards what it is sent, for ever: RFC 863's port is closed on a machine without that service.
AWAY = "http://127.0.0.1:9/graphql"


def environment(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NODE_AGENT_")}
    return {
        **clean,
        "HOME": str(tmp_path),
        "NODE_AGENT_STATE_DIR": str(tmp_path / "s"),
        "NODE_AGENT_SERVICES": "none",
    }


def agent(tmp_path: Path, *words: str, **variables: str) -> Result:
    """In this process, whose logging is pytest's."""
    own = {"HOME": str(tmp_path), "NODE_AGENT_STATE_DIR": str(tmp_path / "s"), **variables}
    with patch("agent.cli.configure_logs"):
        return CliRunner(env=own).invoke(main, words)


@contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """An agent that has found its registry away, and waits for it."""
    with subprocess.Popen(
        [sys.executable, "-m", "agent", "run", "--registry-url", AWAY, *words],
        env=environment(tmp_path),
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
    ("words", "variables", "named"),
    [
        (["run", "--role", "prod"], {}, "--role"),
        (["bootstrap"], {"NODE_AGENT_TYPE": "toaster"}, "NODE_AGENT_TYPE"),
        (["run"], {"NODE_AGENT_TRANSPORT": "pigeon"}, "NODE_AGENT_TRANSPORT"),
        (["status"], {"NODE_AGENT_REGISTRY_URL": "nowhere"}, "NODE_AGENT_REGISTRY_URL"),
        (["bootstrap", "--node-id", "two words"], {}, "--node-id"),
    ],
)
def test_bad_value_stops_the_start_with_one_line_that_names_it(
    tmp_path: Path, words: list[str], variables: dict[str, str], named: str
) -> None:
    ended = agent(tmp_path, *words, **variables)
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"Error: {named}: ")
    assert ended.stderr.count("\n") == 1


def test_status_of_a_machine_that_never_bootstrapped_says_so(tmp_path: Path) -> None:
    ended = agent(tmp_path, "status")
    assert ended.exit_code == 1
    assert ended.stderr == (
        f"Error: {tmp_path / 's'} contains no node id: run node-agent bootstrap first\n"
    )
    assert not (tmp_path / "s").exists()


def test_status_without_a_registry_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("node-1\n")
    ended = agent(tmp_path, "status", "--registry-url", AWAY)
    assert ended.exit_code == 1
    assert ended.stderr.startswith(f"Error: no usable answer from the registry at {AWAY}: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["bootstrap", "run"])
def test_second_agent_on_one_state_directory_ends_with_one_line(
    tmp_path: Path, command: str
) -> None:
    with lock_directory(tmp_path / "s"):
        ended = agent(tmp_path, command)
    assert ended.exit_code == 1
    assert f"another node-agent (process {os.getpid()}) is using it" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_damaged_node_id_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("\n")
    ended = agent(tmp_path, "run", "--registry-url", AWAY)
    assert ended.exit_code == 1
    assert "contains no node id" in ended.stderr


def test_other_node_id_than_the_stored_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / identity.NODE_ID).write_text("node-1\n")
    ended = agent(tmp_path, "bootstrap", "--node-id", "node-2")
    assert ended.exit_code == 2
    assert "already contains 'node-1'" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_waiting_agent_at_once_and_without_failure(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(timeout=5) == 0
        assert process.stderr is not None
        assert json.loads(process.stderr.readline())["reason"] == number.name


def test_signal_ends_an_agent_that_hangs_on_the_registry(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--registry-url", url],
            env=environment(tmp_path),
            stderr=subprocess.DEVNULL,
        ) as process:
            mute.settimeout(20)
            peer, _ = mute.accept()
            with peer:
                peer.recv(1)
                process.terminate()
                assert process.wait(timeout=5) == 0


def test_agent_ends_with_the_process_that_holds_its_standard_input(tmp_path: Path) -> None:
    with running(tmp_path, "--exit-with-parent") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=5) == 0


def test_agent_that_shall_end_with_its_parent_needs_a_pipe(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--exit-with-parent"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == "Error: --exit-with-parent: standard input is not a pipe\n"


def test_log_that_nobody_reads_does_not_end_the_agent(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.terminate()
        assert process.wait(timeout=5) in {0, 120}  # 120: Python could not flush its stderr


def test_help_names_the_roles_and_the_default() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--help"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "production-router" in ended.stdout
    assert "[development-worker]" in ended.stdout
