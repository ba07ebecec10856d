"""deploy.sh on a host that is reached by ssh where possible; docker and ufw are stand-ins.

Container engines are not available to the tests: they check which commands the script runs, in
which order, what it leaves on the host, and that a second run repeats none of them.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support import sshd
from tests.support.paths import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCRIPT = ROOT / "deploy" / "deploy.sh"
SHIPPED_BESIDE_DEPLOY = (
    *("agent", "db", "graph", "migrations", "requirements"),
    *("pyproject.toml", "README.md", "Dockerfile", ".dockerignore"),
)
STAND_IN = Path(__file__).parent.parent / "support" / "stand_in"
READ_ONLY_CALLS = re.compile(
    r"docker (info|compose version|network|volume|inspect|.* (ps|port) )|ufw (status|show)|sudo"
)
"""Calls that only read the state of the host."""
LAN = ("--address", "192.168.7.5")
RULES = "*filter\n-A ufw-after-input -j RETURN\nCOMMIT\n"


@dataclass
class Host:
    ssh: str
    folder: Path
    no_ssh_reason: str | None = None
    """Why the host is reached without ssh; None if ssh is used."""

    @property
    def state(self) -> Path:
        """The folder in which the stand-ins keep their state."""
        return self.folder / "state"

    @property
    def directory(self) -> Path:
        """The folder into which the registry is deployed."""
        return self.folder / "registry"

    @property
    def after_rules(self) -> Path:
        return self.folder / "after.rules"

    async def deploy(
        self, *options: str, host: str = "127.0.0.1", script: Path = SCRIPT
    ) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            script,
            *("--directory", str(self.directory), *options, host),
            env={**os.environ, "DEPLOY_SSH": self.ssh},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    def changes(self) -> list[str]:
        """Return the changing calls of the stand-ins since the last call of this method."""
        file = self.state / "calls"
        calls = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        files = re.compile(r"--env-file \S+ --file \S+ ")
        return [files.sub("", call) for call in calls if not READ_ONLY_CALLS.match(call)]

    def secrets(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.directory / "secrets").iterdir()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_host(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    assert pytestconfig.cache is not None
    keys, folder = tmp_path_factory.mktemp("sshd"), tmp_path_factory.mktemp("host")
    environment = {
        "PATH": f"{STAND_IN}:/usr/bin:/bin",
        "STAND_IN": str(folder / "state"),
        "UFW_AFTER_RULES": str(folder / "after.rules"),
    }
    async with AsyncExitStack() as stack:
        try:
            program = sshd.find_sshd(pytestconfig.cache.mkdir("sshd"))
            ssh = await stack.enter_async_context(sshd.run_host(program, keys, environment))
        except sshd.UnavailableError as error:
            variables = " ".join(f"{name}={value}" for name, value in environment.items())
            yield Host(f"env {variables} {STAND_IN / 'ssh'}", folder, str(error))
            return
        yield Host(ssh, folder)


def reset(host: Host) -> None:
    for path in host.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    host.state.mkdir()
    host.after_rules.write_text(RULES)


@dataclass
class RunResult:
    """The output of a run, its changing calls, and the state of the host after it."""

    output: str
    changes: list[str]
    secrets: dict[str, str]
    after_rules: str
    files: set[str]


async def deploy_and_inspect(host: Host) -> RunResult:
    status, output, errors = await host.deploy(*LAN)
    assert status == 0, errors
    files = {
        str(path.relative_to(host.directory))
        for path in host.directory.rglob("*")
        if path.is_file()
    }
    rules = host.after_rules.read_text()
    return RunResult(output + errors, host.changes(), host.secrets(), rules, files)


Runs = tuple[RunResult, RunResult, RunResult]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs(shared_host: Host) -> Runs:
    """Three runs on one host: the first, a repetition, and one with a later version."""
    reset(shared_host)
    first, second = await deploy_and_inspect(shared_host), await deploy_and_inspect(shared_host)
    (shared_host.directory / "release.sha256").write_text("of another version\n")
    (shared_host.directory / "release/left_over.py").touch()
    return first, second, await deploy_and_inspect(shared_host)


@pytest.fixture
def host(shared_host: Host, runs: Runs) -> Host:
    """The host in its initial state, after `runs` has finished with it."""
    assert runs
    reset(shared_host)
    return shared_host


def parse_steps(output: str) -> set[str]:
    return {line.split()[0] for line in output.splitlines() if ":" not in line.split()[0]}


FIREWALL_CALLS = [
    "ufw prepend allow proto tcp from 172.17.0.0/16 to any port 9205",
    "ufw prepend allow proto tcp from 172.18.0.0/16 to any port 9205",
    "ufw prepend allow proto tcp from 192.168.7.0/24 to any port 9205",
    "ufw deny 9205/tcp",
    "ufw --force enable",
]


async def test_the_tests_reach_the_host_by_ssh(shared_host: Host) -> None:
    if shared_host.no_ssh_reason:
        pytest.skip(f"deploy.sh is tried without ssh: {shared_host.no_ssh_reason}")


async def test_first_run_builds_then_closes_the_firewall_then_starts(
    runs: Runs,
) -> None:
    first = runs[0]
    build, create, ssh, *firewall, start, restart = first.changes
    assert build == "docker compose build --quiet --pull"
    assert create == "docker compose up --no-start --remove-orphans"
    assert re.fullmatch(r"ufw allow \d+/tcp", ssh)  # first, or ufw would end the ssh connection
    assert firewall == FIREWALL_CALLS
    assert start == "docker compose up --detach --remove-orphans"
    assert restart == "docker compose restart prometheus grafana"
    expected = {
        "reached",
        "sent",
        "made",
        "set",
        "built",
        "added",
        "enabled",
        "started",
        "verified",
    }
    assert parse_steps(first.output) == expected | {"The"}


async def test_host_receives_the_sources_of_the_image_and_the_deployment(
    runs: Runs,
) -> None:
    files = {file.removeprefix("release/") for file in runs[0].files}
    assert {"graph/app.py", "deploy/compose.yaml", "deploy/prometheus/alerts.yaml"} <= files
    assert not [file for file in files if "__pycache__" in file or file.startswith("tests")]


async def test_sent_files_belong_to_root(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    stranger = 65533
    checkout = host.folder / "checkout"
    shutil.copytree(ROOT / "deploy", checkout / "deploy", ignore=shutil.ignore_patterns("secrets"))
    for name in SHIPPED_BESIDE_DEPLOY:
        path = ROOT / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, checkout / name)
    for path in checkout.rglob("*"):
        os.chown(path, stranger, stranger)
    status, _, errors = await host.deploy(*LAN, script=checkout / "deploy" / "deploy.sh")
    assert status == 0, errors
    owners = {path.stat().st_uid for path in (host.directory / "release").rglob("*")}
    assert owners == {0}


async def test_deploy_does_not_open_the_ssh_port_of_an_active_firewall(host: Host) -> None:
    (host.state / "active").touch()
    status, _, errors = await host.deploy(*LAN)
    assert status == 0, errors
    calls = host.changes()
    assert "ufw deny 9205/tcp" in calls
    assert not [call for call in calls if re.fullmatch(r"ufw allow \d+/tcp", call)]


async def test_secrets_are_strong_and_never_leave_the_host(runs: Runs) -> None:
    secrets = runs[0].secrets
    assert set(secrets) == {"postgres_password", "grafana_password", "administrator.env"}
    password = secrets["postgres_password"]
    assert re.fullmatch(r"[0-9a-f]{64}", password)
    assert re.fullmatch(r"[0-9a-f]{64}", secrets["grafana_password"])
    assert password != secrets["grafana_password"]
    assert secrets["administrator.env"] == (
        f"NODE_REGISTRY_ADMINISTRATOR_URL=postgresql://postgres:{password}@db/postgres\n"
    )
    for run in runs:
        visible = run.output + "".join(run.changes)
        assert password not in visible
        assert secrets["grafana_password"] not in visible


async def test_repeated_run_changes_nothing_and_reports_it(runs: Runs) -> None:
    first, second, _ = runs
    assert second.changes == []
    assert parse_steps(second.output) == {"reached", "kept", "verified", "The"}
    assert (second.secrets, second.after_rules) == (first.secrets, first.after_rules)
    assert second.files == first.files


async def test_later_version_is_built_and_the_secrets_stay(runs: Runs) -> None:
    first, _, third = runs
    assert [call.split()[2] for call in third.changes] == ["build", "up", "up", "restart"]
    assert third.secrets == first.secrets
    assert third.files == first.files


async def test_ports_that_docker_publishes_are_open_only_to_the_allowed_networks(
    runs: Runs,
) -> None:
    existing_rules, _, block = runs[0].after_rules.partition("# BEGIN node-registry\n")
    assert existing_rules == RULES
    port = "-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 9205 --ctdir ORIGINAL"
    assert block.splitlines() == [
        "*filter",
        ":DOCKER-USER - [0:0]",
        f"{port} -s 172.17.0.0/16 -j RETURN",
        f"{port} -s 172.18.0.0/16 -j RETURN",
        f"{port} -s 192.168.7.0/24 -j RETURN",
        f"{port} -j DROP",
        "COMMIT",
        "# END node-registry",
    ]


async def test_dry_run_lists_the_steps_and_executes_none(host: Host) -> None:
    status, output, errors = await host.deploy("--dry-run", *LAN)
    assert status == 0, errors
    assert host.changes() == []
    assert not host.directory.exists()
    assert "DOCKER-USER" not in host.after_rules.read_text()
    assert parse_steps(output) == {"reached", "would"}
    for step in ("secret postgres_password", "release", "ufw deny 9205/tcp", "db registry"):
        assert re.search(rf"^would +.*{re.escape(step)}", output, re.MULTILINE), output


async def test_another_address_moves_the_registry_and_opens_the_firewall_to_its_networks(
    host: Host,
) -> None:
    await host.deploy()
    assert (host.directory / "compose.env").read_text() == "NODE_REGISTRY_ADDRESS=127.0.0.1\n"
    host.changes()
    status, _, errors = await host.deploy(*LAN, "--lan", "10.1.0.0/16", "--lan", "10.2.0.0/16")
    assert status == 0, errors
    assert [call for call in host.changes() if call.startswith("ufw")] == [
        "ufw prepend allow proto tcp from 10.1.0.0/16 to any port 9205",
        "ufw prepend allow proto tcp from 10.2.0.0/16 to any port 9205",
        "ufw reload",
    ]
    rules = (host.state / "rules").read_text().splitlines()
    assert rules.index("ufw allow from 10.1.0.0/16 to any port 9205 proto tcp") < rules.index(
        "ufw deny 9205/tcp"
    )


async def test_existing_docker_rules_are_kept_and_the_required_ones_are_printed(host: Host) -> None:
    existing_rules = "*filter\n:DOCKER-USER - [0:0]\nCOMMIT\n"
    host.after_rules.write_text(existing_rules)
    status, output, errors = await host.deploy(*LAN)
    assert status == 0, errors
    assert host.after_rules.read_text() == existing_rules
    assert "--ctdir ORIGINAL -j DROP" in output


async def test_user_other_than_root_deploys_by_sudo(host: Host) -> None:
    (host.state / "not_root").touch()
    status, output, errors = await host.deploy("--dry-run")
    assert status == 0, errors
    assert (host.state / "calls").read_text().splitlines()[0] == "sudo -n env"
    assert re.search(r"would +ufw allow \d+/tcp", output)  # the port of the ssh connection


async def test_failed_build_leaves_the_running_version_and_is_repeated(host: Host) -> None:
    (host.state / "broken").touch()
    status, output, _ = await host.deploy(*LAN)
    assert status != 0
    assert "verified" not in output
    assert not (host.directory / "release.sha256").exists()
    before = host.secrets()
    (host.state / "broken").unlink()
    status, output, errors = await host.deploy(*LAN)
    assert status == 0, errors
    assert "verified" in output
    assert host.secrets() == before


async def test_deploy_creates_no_new_password_for_an_existing_database(host: Host) -> None:
    (host.state / "made").touch()
    status, _, errors = await host.deploy()
    assert status == 1
    assert errors.endswith("secrets/postgres_password does not: restore the file\n")
    assert host.changes() == []
    assert not (host.directory / "secrets").exists()


async def test_host_without_the_address_is_left_unchanged(host: Host) -> None:
    status, output, errors = await host.deploy("--address", "192.168.7.6")
    assert status == 1
    assert "the host has no address 192.168.7.6" in errors
    assert (output, host.changes()) == ("", [])
    assert not host.directory.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--address", "::1"], "is not an IPv4 address"),
        (["--lan", "everyone"], "is not a network such as"),
        (["--directory", "/a b"], "is not a plain absolute path"),
        (["--no-such"], "unknown option --no-such"),
        (["another"], "more than one host given"),
        ([], "127.0.0.1 cannot be used"),
    ],
)
async def test_deploy_rejects_an_invalid_argument_and_changes_nothing(
    arguments: list[str], message: str
) -> None:
    host = Host("false", Path("/nowhere"))
    status, output, errors = await host.deploy(*arguments)
    assert status == 1
    assert output == ""
    assert message in errors


async def test_deploy_sends_every_file_that_the_image_copies() -> None:
    sent = SCRIPT.read_text().partition("SHIPPED=(")[2].partition(")")[0].split()
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sources = {source.strip("/") for sources in copied for source in sources.split()}
    assert sources <= set(sent)


async def test_shellcheck_finds_nothing() -> None:
    process = subprocess.run(  # noqa: ASYNC221  # nothing else runs
        [Path(sys.executable).with_name("shellcheck"), SCRIPT, *STAND_IN.iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "")
