"""`node-agent install` and `uninstall`, into the folder of an image."""

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


def installed(root: Path, *words: str, token: str = "", scope: str = "system") -> Result:
    arguments = ["--root", str(root), "--manager", "systemd", "--scope", scope, *words]
    return CliRunner().invoke(install, arguments, env={"NODE_AGENT_TOKEN": token})


def uninstalled(root: Path, *words: str) -> Result:
    arguments = ["--root", str(root), "--manager", "systemd", "--scope", "system", *words]
    return CliRunner().invoke(uninstall, arguments)


def files(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and text, by their places below the root."""
    return {
        str(path.relative_to(root)): (stat.S_IMODE(path.stat().st_mode), path.read_text())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def variables(root: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split((root / SETTINGS).read_text()))


def test_unit_and_settings_are_written_and_what_to_run_is_said(tmp_path: Path) -> None:
    words = ("--registry-url", "http://10.0.0.5:9205", "--role", "production-router")
    done = installed(tmp_path, *words, "--labels", "gpu,eu", token="nrk_secret")
    assert done.exit_code == 0, done.output
    found = files(tmp_path)
    assert {path: mode for path, (mode, _) in found.items()} == {
        SETTINGS: 0o600,
        "etc/sysusers.d/node-agent.conf": 0o644,
        UNIT: 0o644,
    }
    assert variables(tmp_path) == {
        "NODE_AGENT_REGISTRY_URL": "http://10.0.0.5:9205/graphql",
        "NODE_AGENT_ROLE": "production-router",
        "NODE_AGENT_LABELS": "gpu,eu",
        "NODE_AGENT_TRANSPORT": "websocket",
        "NODE_AGENT_STATE_DIR": "/etc/dagi",
        "NODE_AGENT_TOKEN": "nrk_secret",
    }
    assert "nrk_secret" not in done.output + found[UNIT][1]
    assert done.output.endswith(
        "Now run:\n  systemd-sysusers\n  systemctl daemon-reload\n"
        "  systemctl enable node-agent.service\n  systemctl restart node-agent.service\n"
    )


def test_command_in_the_unit_is_there_and_is_the_agent(tmp_path: Path) -> None:
    installed(tmp_path)
    [command] = re.findall(r"^ExecStart=(.+)$", (tmp_path / UNIT).read_text(), re.MULTILINE)
    program, *words = shlex.split(command)
    assert words[-1] == "run"
    helped = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True)
    assert "send heartbeats" in helped.stdout


def test_agent_understands_the_settings_that_were_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"role": "backup-gateway", "labels": "a,b", "name": 'The "1st" $HOME %h\\'}
    installed(tmp_path, *(word for name, value in wanted.items() for word in (f"--{name}", value)))
    for name, value in variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    understood = load_settings({})
    assert understood.role == "backup-gateway"
    assert understood.labels == ("a", "b")
    assert understood.name == wanted["name"]


def test_account_of_the_agent_cannot_write_what_a_command_of_root_is_given(tmp_path: Path) -> None:
    installed(tmp_path)
    unit = (tmp_path / UNIT).read_text()
    [owned] = re.findall(r"^ExecStartPre=\+/bin/chown -R node-agent: (.+)$", unit, re.MULTILINE)
    [environment] = re.findall(r"^EnvironmentFile=(.+)$", unit, re.MULTILINE)
    assert not Path(environment).is_relative_to(owned)


def test_repeated_it_changes_nothing_and_keeps_what_is_not_given(tmp_path: Path) -> None:
    installed(tmp_path, "--role", "production-router", "--labels", "gpu", token="nrk_secret")
    before = files(tmp_path)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    again = installed(tmp_path)
    assert again.output.startswith(f"{tmp_path / UNIT} is up to date.\n")
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in before} == times
    installed(tmp_path, "--labels", "eu")
    assert files(tmp_path) != before
    assert variables(tmp_path)["NODE_AGENT_LABELS"] == "eu"
    assert variables(tmp_path)["NODE_AGENT_ROLE"] == "production-router"
    assert variables(tmp_path)["NODE_AGENT_TOKEN"] == "nrk_secret"


def test_what_bootstrap_was_told_is_installed(tmp_path: Path) -> None:
    told = load_settings({"role": "production-router", "labels": "gpu"}).to_bootstrap_settings()
    (tmp_path / "etc/dagi").mkdir(parents=True)
    (tmp_path / "etc/dagi/bootstrap.json").write_text(json.dumps(told))
    installed(tmp_path, "--labels", "eu")
    assert variables(tmp_path)["NODE_AGENT_ROLE"] == "production-router"
    assert variables(tmp_path)["NODE_AGENT_LABELS"] == "eu"


def test_dry_run_shows_all_but_the_token_and_writes_nothing(tmp_path: Path) -> None:
    done = installed(tmp_path, "--dry-run", token="nrk_secret")
    assert done.exit_code == 0
    assert f"--- {tmp_path / UNIT} (0644)" in done.output
    assert "NODE_AGENT_TOKEN=***" in done.output
    assert "nrk_secret" not in done.output
    assert files(tmp_path) == {}


def test_uninstall_leaves_nothing_but_the_identity(tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "etc/dagi").mkdir()
    (tmp_path / "etc/dagi/node_id").write_text("node-1\n")
    enabled = tmp_path / "etc/systemd/system/multi-user.target.wants/node-agent.service"
    enabled.parent.mkdir()
    enabled.symlink_to(f"/{UNIT}")
    planned = uninstalled(tmp_path, "--dry-run")
    assert planned.output.count(" would be removed.") == 4
    assert len(files(tmp_path)) == 4
    done = uninstalled(tmp_path)
    assert done.output.count(" was removed.") == 4
    assert list(files(tmp_path)) == ["etc/dagi/node_id"]
    assert not os.path.lexists(enabled)
    assert uninstalled(tmp_path).output.startswith(f"{tmp_path / UNIT} does not exist.\n")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--role", "prod"], "--role: expected production"),
        (["--state-dir", "/srv/agent"], "--state-dir: this service keeps its node id in /etc/dagi"),
        (["--run-as", "nobody"], "--run-as: allowed only for a launchd system daemon"),
        (["--manager", "launchd"], "--run-as: required: the user"),
        (["--manager", "launchd", "--run-as", "no-such-user"], "--run-as: there is no user"),
        (["--root", "/", "--ca-file", "/home/me/ca.pem"], "--ca-file: a system service"),
    ],
)
def test_what_could_not_work_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, words: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    done = installed(tmp_path, *words)
    assert done.exit_code == 2
    assert done.output.startswith(f"Error: {named}")
    assert done.output.count("\n") == 1
    assert files(tmp_path) == {}


def test_interpreter_that_the_service_would_not_see_is_refused(
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
def test_damaged_settings_are_said_and_left_alone(tmp_path: Path, damage: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / SETTINGS).write_text(damage)
    done = installed(tmp_path)
    assert done.exit_code == 1
    assert "is damaged; delete it and install again" in done.output
    assert list(files(tmp_path)) == [SETTINGS]


def test_plist_of_a_mac_holds_the_settings_for_nobody_else_to_read(tmp_path: Path) -> None:
    arguments = ["--root", str(tmp_path), "--manager", "launchd", "--role", "development-router"]
    done = CliRunner().invoke(
        install, [*arguments, "--scope", "user"], env={"NODE_AGENT_TOKEN": "nrk_secret"}
    )
    assert done.exit_code == 0, done.output
    [(path, (mode, text))] = files(tmp_path).items()
    assert path.endswith("Library/LaunchAgents/city.daarion.node-agent.plist")
    assert mode == 0o600
    job = plistlib.loads(text.encode())
    assert job["Label"] == "city.daarion.node-agent"
    assert job["ProgramArguments"][1:] == ["run"]
    assert job["KeepAlive"] is job["RunAtLoad"] is True
    assert job["EnvironmentVariables"]["NODE_AGENT_ROLE"] == "development-router"
    assert job["EnvironmentVariables"]["NODE_AGENT_TOKEN"] == "nrk_secret"
    assert "UserName" not in job
    assert f"launchctl bootstrap gui/{os.geteuid()} /" in done.output
    again = CliRunner().invoke(install, [*arguments, "--scope", "user"])
    assert "is up to date" in again.output
    daemon = CliRunner().invoke(install, [*arguments, "--scope", "system", "--run-as", "nobody"])
    assert daemon.exit_code == 0, daemon.output
    text = (tmp_path / "Library/LaunchDaemons/city.daarion.node-agent.plist").read_text()
    assert plistlib.loads(text.encode())["UserName"] == "nobody"


def test_units_in_deploy_are_those_that_install_writes() -> None:
    assert units.render_default_units() == {
        place: (DEPLOY / place).read_text() for place in units.render_default_units()
    }, "make units"


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20))
def test_any_value_is_read_back_from_the_file_of_settings(value: str) -> None:
    [word] = shlex.split(units.render_environment_file({"NAME": value}))
    assert word == f"NAME={value}"


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for scope, options in (("system", []), ("user", ["--user"])):
        installed(tmp_path / scope, scope=scope)
        [unit] = (tmp_path / scope).rglob("node-agent.service")
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *options, unit],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stderr
        assert "node-agent" not in checked.stderr
