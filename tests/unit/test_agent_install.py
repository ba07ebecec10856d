"""`node-agent install` and `uninstall` with another root folder."""

import json
import os
import plistlib
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import units
from agent.install import check_visibility, install, uninstall
from agent.settings import BadSettingError, load_settings
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
UNIT = "etc/systemd/system/node-agent.service"
SETTINGS = "etc/node-agent.env"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def run_install(root: Path, *options: str, token: str = "", scope: str = "system") -> Result:
    arguments = ["--root", str(root), "--manager", "systemd", "--scope", scope, *options]
    return CliRunner().invoke(install, arguments, env={"NODE_AGENT_TOKEN": token})


def run_uninstall(root: Path, *options: str) -> Result:
    arguments = ["--root", str(root), "--manager", "systemd", "--scope", "system", *options]
    return CliRunner().invoke(uninstall, arguments)


def read_files(root: Path) -> dict[str, tuple[int, str]]:
    """Return mode and text of all files, by their paths below the root."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_text())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_variables(root: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split((root / SETTINGS).read_text()))


def test_install_writes_unit_and_settings_and_prints_the_commands_to_run(tmp_path: Path) -> None:
    options = ("--registry-url", "http://10.0.0.5:9205", "--role", "production-router")
    result = run_install(tmp_path, *options, "--labels", "gpu,eu", token="nrk_secret")
    assert result.exit_code == 0, result.output
    files = read_files(tmp_path)
    assert {path: mode for path, (mode, _) in files.items()} == {
        SETTINGS: 0o600,
        "etc/sysusers.d/node-agent.conf": 0o644,
        UNIT: 0o644,
    }
    assert read_variables(tmp_path) == {
        "NODE_AGENT_REGISTRY_URL": "http://10.0.0.5:9205/graphql",
        "NODE_AGENT_ROLE": "production-router",
        "NODE_AGENT_LABELS": "gpu,eu",
        "NODE_AGENT_TRANSPORT": "websocket",
        "NODE_AGENT_STATE_DIR": "/etc/dagi",
        "NODE_AGENT_TOKEN": "nrk_secret",
    }
    assert "nrk_secret" not in result.output + files[UNIT][1]
    assert result.output.endswith(
        "Now run:\n  systemd-sysusers\n  systemctl daemon-reload\n"
        "  systemctl enable node-agent.service\n  systemctl restart node-agent.service\n"
    )


def test_command_in_the_unit_runs_the_agent(tmp_path: Path) -> None:
    run_install(tmp_path)
    [command] = re.findall(r"^ExecStart=(.+)$", (tmp_path / UNIT).read_text(), re.MULTILINE)
    program, *arguments = shlex.split(command)
    assert arguments[-1] == "run"
    process = subprocess.run(
        [program, *arguments, "--help"], capture_output=True, text=True, check=True
    )
    assert "send heartbeats" in process.stdout


def test_agent_reads_the_installed_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"role": "backup-gateway", "labels": "a,b", "name": 'The "1st" $HOME %h\\'}
    run_install(
        tmp_path, *(word for name, value in options.items() for word in (f"--{name}", value))
    )
    for name, value in read_variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    agent_settings = load_settings({})
    assert agent_settings.role == "backup-gateway"
    assert agent_settings.labels == ("a", "b")
    assert agent_settings.name == options["name"]


def test_account_of_the_agent_cannot_write_the_environment_file_of_the_unit(tmp_path: Path) -> None:
    run_install(tmp_path)
    unit = (tmp_path / UNIT).read_text()
    [owned_folder] = re.findall(
        r"^ExecStartPre=\+/bin/chown -R node-agent: (.+)$", unit, re.MULTILINE
    )
    [environment_file] = re.findall(r"^EnvironmentFile=(.+)$", unit, re.MULTILINE)
    assert not Path(environment_file).is_relative_to(owned_folder)


def test_repeated_install_changes_nothing_and_keeps_settings_not_given_again(
    tmp_path: Path,
) -> None:
    run_install(tmp_path, "--role", "production-router", "--labels", "gpu", token="nrk_secret")
    before = read_files(tmp_path)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    result = run_install(tmp_path)
    assert result.output.startswith(f"{tmp_path / UNIT} is up to date.\n")
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in before} == times
    run_install(tmp_path, "--labels", "eu")
    assert read_files(tmp_path) != before
    assert read_variables(tmp_path)["NODE_AGENT_LABELS"] == "eu"
    assert read_variables(tmp_path)["NODE_AGENT_ROLE"] == "production-router"
    assert read_variables(tmp_path)["NODE_AGENT_TOKEN"] == "nrk_secret"


def test_install_takes_over_the_settings_of_bootstrap(tmp_path: Path) -> None:
    bootstrap_settings = load_settings(
        {"role": "production-router", "labels": "gpu"}
    ).to_bootstrap_settings()
    (tmp_path / "etc/dagi").mkdir(parents=True)
    (tmp_path / "etc/dagi/bootstrap.json").write_text(json.dumps(bootstrap_settings))
    run_install(tmp_path, "--labels", "eu")
    assert read_variables(tmp_path)["NODE_AGENT_ROLE"] == "production-router"
    assert read_variables(tmp_path)["NODE_AGENT_LABELS"] == "eu"


def test_dry_run_shows_everything_except_the_token_and_writes_nothing(tmp_path: Path) -> None:
    result = run_install(tmp_path, "--dry-run", token="nrk_secret")
    assert result.exit_code == 0
    assert f"--- {tmp_path / UNIT} (0644)" in result.output
    assert "NODE_AGENT_TOKEN=***" in result.output
    assert "nrk_secret" not in result.output
    assert read_files(tmp_path) == {}


def test_uninstall_leaves_only_the_node_id(tmp_path: Path) -> None:
    run_install(tmp_path)
    (tmp_path / "etc/dagi").mkdir()
    (tmp_path / "etc/dagi/node_id").write_text("node-1\n")
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/node-agent.service"
    link.parent.mkdir()
    link.symlink_to(f"/{UNIT}")
    dry_run = run_uninstall(tmp_path, "--dry-run")
    assert dry_run.output.count(" would be removed.") == 4
    assert len(read_files(tmp_path)) == 4
    result = run_uninstall(tmp_path)
    assert result.output.count(" was removed.") == 4
    assert list(read_files(tmp_path)) == ["etc/dagi/node_id"]
    assert not os.path.lexists(link)
    assert run_uninstall(tmp_path).output.startswith(f"{tmp_path / UNIT} does not exist.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--role", "prod"], "--role: expected production"),
        (["--state-dir", "/srv/agent"], "--state-dir: this service keeps its node id in /etc/dagi"),
        (["--run-as", "nobody"], "--run-as: allowed only for a launchd system daemon"),
        (["--manager", "launchd"], "--run-as: required: the user"),
        (["--manager", "launchd", "--run-as", "no-such-user"], "--run-as: there is no user"),
        (["--root", "/", "--ca-file", "/home/me/ca.pem"], "--ca-file: a system service"),
    ],
)
def test_install_rejects_invalid_options_in_one_line_and_writes_nothing(
    tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    result = run_install(tmp_path, *options)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {message}")
    assert result.output.count("\n") == 1
    assert read_files(tmp_path) == {}


def test_interpreter_that_the_service_cannot_read_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "agent.install.find_agent_command", lambda: ("/opt/node-agent/bin/node-agent",)
    )
    monkeypatch.setattr("sys.base_prefix", "/usr")
    check_visibility(load_settings({}))
    monkeypatch.setattr("sys.base_prefix", "/root/.local/share/python")
    with pytest.raises(BadSettingError, match=r"cannot read /root/\.local/share/python"):
        check_visibility(load_settings({}))


@pytest.mark.parametrize("damage", ['NAME="', "no assignment"])
def test_damaged_settings_are_reported_and_left_unchanged(tmp_path: Path, damage: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / SETTINGS).write_text(damage)
    result = run_install(tmp_path)
    assert result.exit_code == 1
    assert "is damaged; delete it and install again" in result.output
    assert list(read_files(tmp_path)) == [SETTINGS]


def test_launchd_plist_contains_the_settings_and_is_private(tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--manager", "launchd", "--role", "development-router"]
    result = CliRunner().invoke(
        install, [*arguments, "--scope", "user"], env={"NODE_AGENT_TOKEN": "nrk_secret"}
    )
    assert result.exit_code == 0, result.output
    [(path, (mode, text))] = read_files(tmp_path).items()
    assert path.endswith("Library/LaunchAgents/city.daarion.node-agent.plist")
    assert mode == 0o600
    job = plistlib.loads(text.encode())
    assert job["Label"] == "city.daarion.node-agent"
    assert job["ProgramArguments"][1:] == ["run"]
    assert job["KeepAlive"] is job["RunAtLoad"] is True
    assert job["EnvironmentVariables"]["NODE_AGENT_ROLE"] == "development-router"
    assert job["EnvironmentVariables"]["NODE_AGENT_TOKEN"] == "nrk_secret"
    assert "UserName" not in job
    assert f"launchctl bootstrap gui/{os.geteuid()} /" in result.output
    repeated = CliRunner().invoke(install, [*arguments, "--scope", "user"])
    assert "is up to date" in repeated.output
    daemon = CliRunner().invoke(install, [*arguments, "--scope", "system", "--run-as", "nobody"])
    assert daemon.exit_code == 0, daemon.output
    text = (tmp_path / "Library/LaunchDaemons/city.daarion.node-agent.plist").read_text()
    assert plistlib.loads(text.encode())["UserName"] == "nobody"


def test_units_in_deploy_are_those_that_install_renders() -> None:
    assert units.render_default_units() == {
        path: (DEPLOY / path).read_text() for path in units.render_default_units()
    }, "make units"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20))
def test_any_value_is_read_back_from_the_environment_file(value: str) -> None:
    [word] = shlex.split(units.render_environment_file({"NAME": value}))
    assert word == f"NAME={value}"


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for scope, options in (("system", []), ("user", ["--user"])):
        run_install(tmp_path / scope, scope=scope)
        [unit] = (tmp_path / scope).rglob("node-agent.service")
        process = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *options, unit],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        assert "node-agent" not in process.stderr
