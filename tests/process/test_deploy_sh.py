"""deploy.sh, run against a host that ssh really reaches, if it can; docker and ufw are stand-ins.

No engine of containers can be had here, so what is seen is what the script asks of it, in which
order, what it leaves on the host, and that it asks for nothing twice.
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
ASKS = re.compile(
    r"docker (info|compose version|network|volume|inspect|.* (ps|port) )|ufw (status|show)|sudo"
)
"""Calls that change nothing."""
LAN = ("--address", "192.168.7.5")
RULES = "*filter\n-A ufw-after-input -j RETURN\nCOMMIT\n"


@dataclass
class Host:
    ssh: str
    folder: Path
    lacks: str | None = None
    """Why it is reached without ssh, if it is."""

    @property
    def state(self) -> Path:
        """Of the stand-ins."""
        return self.folder / "state"

    @property
    def directory(self) -> Path:
        """Where the registry is to be."""
        return self.folder / "registry"

    @property
    def after_rules(self) -> Path:
        return self.folder / "after.rules"

    async def deploy(
        self, *words: str, host: str = "127.0.0.1", script: Path = SCRIPT
    ) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            script,
            *("--directory", str(self.directory), *words, host),
            env={**os.environ, "DEPLOY_SSH": self.ssh},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()

    def changes(self) -> list[str]:
        """What it was asked to change since it was asked this last."""
        file = self.state / "calls"
        calls = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        files = re.compile(r"--env-file \S+ --file \S+ ")
        return [files.sub("", call) for call in calls if not ASKS.match(call)]

    def secrets(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.directory / "secrets").iterdir()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reached(
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


def clear(host: Host) -> None:
    for path in host.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    host.state.mkdir()
    host.after_rules.write_text(RULES)


@dataclass
class Told:
    """What a run printed, what it had the host do, and how it left it."""

    output: str
    changes: list[str]
    secrets: dict[str, str]
    after_rules: str
    files: set[str]


async def told(host: Host) -> Told:
    status, output, errors = await host.deploy(*LAN)
    assert status == 0, errors
    files = {
        str(path.relative_to(host.directory))
        for path in host.directory.rglob("*")
        if path.is_file()
    }
    rules = host.after_rules.read_text()
    return Told(output + errors, host.changes(), host.secrets(), rules, files)


Runs = tuple[Told, Told, Told]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs(reached: Host) -> Runs:
    """On one host: the first run, the same again, and one that brings a later version."""
    clear(reached)
    first, second = await told(reached), await told(reached)
    (reached.directory / "release.sha256").write_text("of another version\n")
    (reached.directory / "release/left_over.py").touch()
    return first, second, await told(reached)


@pytest.fixture
def host(reached: Host, runs: Runs) -> Host:
    """As nobody has touched it; the runs that are looked at above are over."""
    assert runs
    clear(reached)
    return reached


def steps(output: str) -> set[str]:
    return {line.split()[0] for line in output.splitlines() if ":" not in line.split()[0]}


FIREWALL = [
    "ufw prepend allow proto tcp from 172.17.0.0/16 to any port 9205",
    "ufw prepend allow proto tcp from 172.18.0.0/16 to any port 9205",
    "ufw prepend allow proto tcp from 192.168.7.0/24 to any port 9205",
    "ufw deny 9205/tcp",
    "ufw --force enable",
]


async def test_host_is_reached_by_ssh_itself(reached: Host) -> None:
    if reached.lacks:
        pytest.skip(f"deploy.sh is tried without ssh: {reached.lacks}")


async def test_first_run_builds_then_shuts_the_firewall_then_starts(
    runs: Runs,
) -> None:
    first = runs[0]
    build, make, ssh, *firewall, start, restart = first.changes
    assert build == "docker compose build --quiet --pull"
    assert make == "docker compose up --no-start --remove-orphans"
    assert re.fullmatch(r"ufw allow \d+/tcp", ssh)  # first, or ufw would shut us out
    assert firewall == FIREWALL
    assert start == "docker compose up --detach --remove-orphans"
    assert restart == "docker compose restart prometheus grafana"
    said = {"reached", "sent", "made", "set", "built", "added", "enabled", "started", "verified"}
    assert steps(first.output) == said | {"The"}


async def test_host_gets_what_the_image_and_its_neighbours_are_made_of(
    runs: Runs,
) -> None:
    sent = {file.removeprefix("release/") for file in runs[0].files}
    assert {"graph/app.py", "deploy/compose.yaml", "deploy/prometheus/alerts.yaml"} <= sent
    assert not [file for file in sent if "__pycache__" in file or file.startswith("tests")]


async def test_what_was_sent_belongs_to_root_alone(host: Host) -> None:
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


async def test_firewall_that_is_up_opens_no_port_of_ssh_that_it_keeps_shut(host: Host) -> None:
    (host.state / "active").touch()
    status, _, errors = await host.deploy(*LAN)
    assert status == 0, errors
    calls = host.changes()
    assert "ufw deny 9205/tcp" in calls
    assert not [call for call in calls if re.fullmatch(r"ufw allow \d+/tcp", call)]


async def test_secrets_are_strong_and_never_leave_the_host(runs: Runs) -> None:
    made = runs[0].secrets
    assert set(made) == {"postgres_password", "grafana_password", "administrator.env"}
    password = made["postgres_password"]
    assert re.fullmatch(r"[0-9a-f]{64}", password)
    assert re.fullmatch(r"[0-9a-f]{64}", made["grafana_password"])
    assert password != made["grafana_password"]
    assert made["administrator.env"] == (
        f"NODE_REGISTRY_ADMINISTRATOR_URL=postgresql://postgres:{password}@db/postgres\n"
    )
    for run in runs:
        seen = run.output + "".join(run.changes)
        assert password not in seen
        assert made["grafana_password"] not in seen


async def test_repeated_it_changes_nothing_and_says_so(runs: Runs) -> None:
    first, second, _ = runs
    assert second.changes == []
    assert steps(second.output) == {"reached", "kept", "verified", "The"}
    assert (second.secrets, second.after_rules) == (first.secrets, first.after_rules)
    assert second.files == first.files


async def test_later_version_is_built_and_keeps_the_secrets(runs: Runs) -> None:
    first, _, third = runs
    assert [call.split()[2] for call in third.changes] == ["build", "up", "up", "restart"]
    assert third.secrets == first.secrets
    assert third.files == first.files


async def test_what_docker_publishes_is_shut_to_all_but_those_networks(
    runs: Runs,
) -> None:
    kept, _, block = runs[0].after_rules.partition("# BEGIN node-registry\n")
    assert kept == RULES
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


async def test_dry_run_says_what_would_be_done_and_does_nothing(host: Host) -> None:
    status, output, errors = await host.deploy("--dry-run", *LAN)
    assert status == 0, errors
    assert host.changes() == []
    assert not host.directory.exists()
    assert "DOCKER-USER" not in host.after_rules.read_text()
    assert steps(output) == {"reached", "would"}
    for said in ("secret postgres_password", "release", "ufw deny 9205/tcp", "db registry"):
        assert re.search(rf"^would +.*{re.escape(said)}", output, re.MULTILINE), output


async def test_another_address_moves_the_registry_and_lets_its_network_in(host: Host) -> None:
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


async def test_rules_of_others_for_docker_are_left_alone_and_ours_are_said(host: Host) -> None:
    theirs = "*filter\n:DOCKER-USER - [0:0]\nCOMMIT\n"
    host.after_rules.write_text(theirs)
    status, output, errors = await host.deploy(*LAN)
    assert status == 0, errors
    assert host.after_rules.read_text() == theirs
    assert "--ctdir ORIGINAL -j DROP" in output


async def test_user_who_is_not_root_does_it_by_sudo(host: Host) -> None:
    (host.state / "not_root").touch()
    status, output, errors = await host.deploy("--dry-run")
    assert status == 0, errors
    assert (host.state / "calls").read_text().splitlines()[0] == "sudo -n env"
    assert re.search(r"would +ufw allow \d+/tcp", output)  # the port by which it came


async def test_build_that_fails_leaves_what_runs_and_is_repeated(host: Host) -> None:
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


async def test_database_whose_password_was_lost_gets_no_other(host: Host) -> None:
    (host.state / "made").touch()
    status, _, errors = await host.deploy()
    assert status == 1
    assert errors.endswith("secrets/postgres_password does not: restore the file\n")
    assert host.changes() == []
    assert not (host.directory / "secrets").exists()


async def test_host_that_cannot_do_it_is_left_as_it_is(host: Host) -> None:
    status, output, errors = await host.deploy("--address", "192.168.7.6")
    assert status == 1
    assert "the host has no address 192.168.7.6" in errors
    assert (output, host.changes()) == ("", [])
    assert not host.directory.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--address", "::1"], "is not an IPv4 address"),
        (["--lan", "everyone"], "is not a network such as"),
        (["--directory", "/a b"], "is not a plain absolute path"),
        (["--no-such"], "unknown option --no-such"),
        (["another"], "more than one host given"),
        ([], "127.0.0.1 cannot be used"),
    ],
)
async def test_mistake_is_said_and_nothing_is_done(words: list[str], said: str) -> None:
    nowhere = Host("false", Path("/nowhere"))
    status, output, errors = await nowhere.deploy(*words)
    assert status == 1
    assert output == ""
    assert said in errors


async def test_all_that_the_image_is_made_of_is_sent() -> None:
    shipped = SCRIPT.read_text().partition("SHIPPED=(")[2].partition(")")[0].split()
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sources = {source.strip("/") for sources in copied for source in sources.split()}
    assert sources <= set(shipped)


async def test_shellcheck_finds_nothing() -> None:
    checked = subprocess.run(  # noqa: ASYNC221  # nothing else runs
        [Path(sys.executable).with_name("shellcheck"), SCRIPT, *STAND_IN.iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, "")
