"""The files of the service that runs the agent: their paths and contents."""

import os
import plistlib
import pwd
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.parsers.expat import ExpatError

from agent import units
from agent.identity import SYSTEM_DIR, StateError, read_text
from agent.settings import DEFAULT_SERVICES, PREFIX, AgentSettings, BadSettingError


@dataclass(frozen=True)
class ServiceFile:
    path: Path
    text: str
    mode: int = 0o644

    @property
    def is_current(self) -> bool:
        """Whether the file has this text and mode already."""
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except FileNotFoundError:
            return False
        return mode == self.mode and read_text(self.path) == self.text


@dataclass(frozen=True)
class ServiceLayout:
    """The service manager, scope and user of the service, and the paths that follow from them.

    `root` is / or the directory of an image whose / it will be. The paths are those of the
    running system; `resolve` turns them into paths below `root`.
    """

    manager: Literal["systemd", "launchd"]
    is_system: bool
    account: pwd.struct_passwd
    root: Path

    @property
    def state_dir(self) -> Path:
        """The agent's state directory in the running system."""
        systemd = self.manager == "systemd"
        return SYSTEM_DIR if self.is_system and systemd else self._home / ".config" / "dagi"

    @property
    def unit_path(self) -> Path:
        match self.manager, self.is_system:
            case "systemd", True:
                return Path("/etc/systemd/system") / units.SERVICE
            case "systemd", False:
                return self._home / ".config/systemd/user" / units.SERVICE
            case "launchd", True:
                return Path("/Library/LaunchDaemons") / f"{units.LABEL}.plist"
        return self._home / "Library/LaunchAgents" / f"{units.LABEL}.plist"

    @property
    def enabled_link(self) -> Path | None:
        """The link that systemd creates when the unit is enabled; None for launchd."""
        if self.manager == "launchd":
            return None
        target = "multi-user" if self.is_system else "default"
        return self.unit_path.parent / f"{target}.target.wants" / units.SERVICE

    @property
    def settings_path(self) -> Path:
        if self.manager == "launchd":
            return self.unit_path
        if self.is_system:
            return units.SYSTEM_ENVIRONMENT_FILE
        return self.state_dir / units.ENVIRONMENT_FILE

    @property
    def sysusers_path(self) -> Path | None:
        if self.manager == "launchd" or not self.is_system:
            return None
        return Path("/etc/sysusers.d") / f"{units.ACCOUNT}.conf"

    @property
    def _home(self) -> Path:
        return Path(self.account.pw_dir)

    def resolve(self, path: Path) -> Path:
        """Return the absolute path below `root`."""
        return self.root / path.relative_to("/")

    def read_installed_settings(self) -> dict[str, str]:
        """Return the settings of an earlier installation, empty if there is none.

        Raises: StateError: their file is damaged.
        """
        path = self.resolve(self.settings_path)
        text = read_text(path)
        if text is None:
            return {}
        try:
            if self.manager == "launchd":
                variables = dict(plistlib.loads(text.encode())["EnvironmentVariables"])
            else:
                variables = dict(word.split("=", 1) for word in shlex.split(text))
        except (ValueError, LookupError, TypeError, ExpatError):
            raise StateError(path, "is damaged; delete it and install again") from None
        return {
            name.removeprefix(PREFIX).lower(): value
            for name, value in variables.items()
            if name != f"{PREFIX}STATE_DIR"
        }

    def build_files(self, settings: AgentSettings) -> Iterator[ServiceFile]:
        variables = build_environment(settings, self.state_dir)
        command = find_agent_command()
        if self.manager == "launchd":
            account = self.account.pw_name if self.is_system else None
            log = self._home / "Library/Logs/node-agent.log"
            text = units.render_launchd_plist(command, variables, account=account, log=log)
            yield ServiceFile(self.resolve(self.unit_path), text, 0o600)
            return
        yield ServiceFile(
            self.resolve(self.settings_path), units.render_environment_file(variables), 0o600
        )
        if self.sysusers_path:
            yield ServiceFile(self.resolve(self.sysusers_path), units.SYSUSERS)
        unit = units.render_systemd_unit(command, self.settings_path, is_system=self.is_system)
        yield ServiceFile(self.resolve(self.unit_path), unit)

    def list_start_commands(self) -> list[str]:
        if self.manager == "launchd":
            domain = "system" if self.is_system else f"gui/{self.account.pw_uid}"
            return [
                f"launchctl bootout {domain}/{units.LABEL}   # if it is running",
                f"launchctl bootstrap {domain} {shlex.quote(str(self.unit_path))}",
            ]
        systemctl = "systemctl" if self.is_system else "systemctl --user"
        return [
            *(["systemd-sysusers"] if self.is_system else []),
            f"{systemctl} daemon-reload",
            f"{systemctl} enable {units.SERVICE}",
            f"{systemctl} restart {units.SERVICE}",
            *([] if self.is_system else ["loginctl enable-linger   # to run without a login"]),
        ]

    def list_stop_commands(self) -> list[str]:
        if self.manager == "launchd":
            domain = "system" if self.is_system else f"gui/{self.account.pw_uid}"
            return [f"launchctl bootout {domain}/{units.LABEL}"]
        systemctl = "systemctl" if self.is_system else "systemctl --user"
        return [f"{systemctl} stop {units.SERVICE}", f"{systemctl} daemon-reload"]


def choose_layout(
    manager: Literal["systemd", "launchd"] | None,
    scope: Literal["system", "user"] | None,
    run_as: str | None,
    root: Path,
) -> ServiceLayout:
    chosen_manager = manager or ("launchd" if sys.platform == "darwin" else "systemd")
    is_system = os.geteuid() == 0 if scope is None else scope == "system"
    account = pwd.getpwuid(os.geteuid())
    if chosen_manager == "launchd" and is_system:
        name = run_as or os.environ.get("SUDO_USER")
        if not name:
            raise BadSettingError("--run-as", "required: the user of the system daemon")
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            raise BadSettingError("--run-as", f"there is no user {name!r}") from None
    elif run_as is not None:
        raise BadSettingError("--run-as", "allowed only for a launchd system daemon")
    return ServiceLayout(chosen_manager, is_system, account, root)


def find_agent_command() -> tuple[str, ...]:
    program = Path(sys.executable).with_name("node-agent")
    return (str(program), "run") if program.exists() else (sys.executable, "-m", "agent", "run")


def build_environment(settings: AgentSettings, state_dir: Path) -> Mapping[str, str]:
    saved = settings.to_bootstrap_settings()
    labels = saved.pop("labels")
    values = {
        **saved,
        "labels": None if labels is None else ",".join(labels),
        "services": None if settings.services == DEFAULT_SERVICES else saved["services"],
        "state_dir": str(state_dir),
        "token": settings.token.get_secret_value() if settings.token else None,
    }
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items() if value}
