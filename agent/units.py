"""The systemd unit and the launchd job that keep the agent running.

`python -m agent.units deploy` writes those for an agent in /opt/node-agent to deploy/.
"""

import plistlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ACCOUNT = "node-agent"
SERVICE = "node-agent.service"
LABEL = "city.daarion.node-agent"
ENVIRONMENT_FILE = "node-agent.env"
# The agent must not be able to write this file: the unit's command that runs as root has this
# environment too, and LD_PRELOAD in it would give the agent's account the rights of root.
SYSTEM_ENVIRONMENT_FILE = Path("/etc") / ENVIRONMENT_FILE
SYSUSERS = f'u {ACCOUNT} - "Node agent of a DAGI network" - -\n'
DEFAULT_COMMAND = ("/opt/node-agent/bin/node-agent", "run")
DEFAULT_SETTINGS = {"NODE_AGENT_REGISTRY_URL": "http://127.0.0.1:9205/graphql"}

_UNIT = """\
[Unit]
Description=Node agent: sends this machine's heartbeats to the node registry
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
EnvironmentFile={environment_file}
ConfigurationDirectory=dagi
Restart=always
RestartSec=5
# A restart does not correct an invalid setting.
RestartPreventExitStatus=2
TimeoutStopSec=10
MemoryMax=256M
TasksMax=64
{account}NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy={target}
"""
# Only the system manager can apply these.
_ACCOUNT = f"""\
User={ACCOUNT}
# Hand over the files that a bootstrap by root left there.
ExecStartPre=+/bin/chown -R {ACCOUNT}: /etc/dagi
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateTmp=yes
RemoveIPC=yes
# Allow no devices except GPUs.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
"""


def render_systemd_unit(command: Sequence[str], environment_file: Path, *, is_system: bool) -> str:
    return _UNIT.format(
        command=" ".join(map(_quote_word, command)),
        environment_file=environment_file,
        account=_ACCOUNT if is_system else "",
        target="multi-user.target" if is_system else "default.target",
    )


def _quote_word(text: str) -> str:
    """Return the text quoted as a word of a systemd command, where % and $ are special."""
    return _quote(text.replace("%", "%%").replace("$", "$$")) if text else '""'


def _quote(text: str) -> str:
    if text and all(c.isalnum() or c in "/._-:,@%$" for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def render_environment_file(settings: Mapping[str, str]) -> str:
    """Return a systemd environment file, in which $ is not expanded."""
    return "".join(f"{name}={_quote(value)}\n" for name, value in settings.items())


def render_launchd_plist(
    command: Sequence[str], settings: Mapping[str, str], *, account: str | None, log: Path | None
) -> str:
    """Return a launchd job. `account` is the user of a system daemon; a user's job needs none."""
    job: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "EnvironmentVariables": dict(settings),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 10,
        "ProcessType": "Background",
        "ExitTimeOut": 10,
        "Umask": 0o022,
    }
    if account:
        job["UserName"] = account
    if log:
        job["StandardErrorPath"] = str(log)
    return plistlib.dumps(job).decode()


def render_default_units() -> dict[str, str]:
    """Return the text of each file by its path below deploy/."""
    return {
        f"systemd/{SERVICE}": render_systemd_unit(
            DEFAULT_COMMAND, SYSTEM_ENVIRONMENT_FILE, is_system=True
        ),
        f"systemd/{ACCOUNT}.sysusers.conf": SYSUSERS,
        f"launchd/{LABEL}.plist": render_launchd_plist(
            DEFAULT_COMMAND, DEFAULT_SETTINGS, account=None, log=None
        ),
    }


if __name__ == "__main__":
    for place, text in render_default_units().items():
        path = Path(sys.argv[1]) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
