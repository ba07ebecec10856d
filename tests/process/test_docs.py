"""docs/ can be followed: each command and statement in it is run, on a registry of its own.

The `console` blocks of a page are run as they stand, and each command has to end well.
An `sh` block is of what no test machine has, such as cron; only its syntax is checked, and that it
hides nothing that could be run.
"""

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from db.embedded.server import get_running_url
from graph.core.settings import Settings
from tests.support.commands import make_environment
from tests.support.paths import ROOT
from tests.support.processes import BIN, run_registry
from tests.support.provisioning import open_administrator

DOCS = sorted((ROOT / "docs").glob("*.md"))
ASYNC = pytest.mark.asyncio(loop_scope="module")
PAGES = pytest.mark.parametrize("page", DOCS, ids=lambda path: path.stem)
NOT_HERE = re.compile(r"\b(systemctl|launchctl|docker|apt|ssh|rsync)\b")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Without the indent that a block in a list has."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", read(page), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def commands(block: str) -> list[str]:
    """Those behind a `$`, with the lines that they go on; the rest is what they print."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """Where a reader sits: a registry that runs, and the environment of its owner."""

    folder: Path
    data_dir: Path
    address: str
    environment: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="node-registry-test-") as name:
        data_dir = Path(name) / "data"
        async with run_registry(data_dir, NODE_REGISTRY_SWEEP_INTERVAL_SECONDS="5") as (_, graphql):
            url = get_running_url(data_dir)
            yield Place(
                Path(name),
                data_dir,
                graphql.removeprefix("http://").removesuffix("/graphql"),
                {
                    "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
                    "HOME": name,
                    "NODE_REGISTRY_HTTP_PORT": graphql.split(":")[2].removesuffix("/graphql"),
                    "NODE_REGISTRY_DB_HOST": str(url.query["host"]),
                    "NODE_REGISTRY_DB_PORT": str(url.query["port"]),
                    "NODE_REGISTRY_DB_USER": str(url.username),
                    "NODE_REGISTRY_ADMINISTRATOR_URL": make_environment(url)[
                        "NODE_REGISTRY_DATABASE_URL"
                    ],
                },
            )


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="needs bash and curl")
@ASYNC
async def test_every_command_does_what_it_should(place: Place) -> None:
    """In a shell for each page; one that an earlier page has shown already is not run again."""
    shown: dict[str, None] = {}
    script = ["set -euxo pipefail"]
    for page in DOCS:
        listed = [command for block in blocks(page, "console") for command in commands(block)]
        script += ["(", *(command for command in listed if command not in shown), ":", ")"]
        shown |= dict.fromkeys(listed)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", "\n".join(script).replace("localhost:9205", place.address)),
        cwd=place.folder,
        env=place.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(100):
        output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()
    assert b'"errors"' not in output, output.decode()


@PAGES
@ASYNC
async def test_every_statement_can_be_asked(place: Place, page: Path) -> None:
    async with open_administrator(get_running_url(place.data_dir)) as ask:
        for statement in blocks(page, "sql"):
            await ask(statement)


@PAGES
def test_what_is_not_run_is_good_shell_and_needs_another_machine(page: Path) -> None:
    for block in blocks(page, "sh"):
        assert NOT_HERE.search(block), block
        checked = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@PAGES
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    fences = re.findall(r"^ *```(\w*)$", read(page), re.MULTILINE)
    assert set(fences) <= {"console", "sql", "sh", ""}
    assert fences.count("") == len(fences) / 2  # each of these closes a block, and opens none


@ASYNC
async def test_every_metric_that_is_named_is_one(place: Place) -> None:
    async with httpx.AsyncClient() as http:
        known = (await http.get(f"http://{place.address}/metrics")).text
    for text in map(read, DOCS):
        for metric in re.findall(r"`(node_registry_[a-z_]+)`", text):
            assert f"# TYPE {metric} " in known


def test_every_alert_is_told_what_to_do_about() -> None:
    alerts = (DOCS[0].parent.parent / "deploy" / "prometheus" / "alerts.yaml").read_text("utf-8")
    named = re.findall(r"\b(NodeRegistry\w+)", read(DOCS[0].parent / "troubleshoot.md"))
    assert sorted(named) == sorted(re.findall(r"- alert: (\w+)", alerts))


@PAGES
def test_every_setting_that_is_named_is_one(page: Path) -> None:
    named = re.findall(r"\b[A-Z]+(?:_[A-Z]+){1,4}(?:_SECONDS|_RATE|_SIZE|_LAG)\b", read(page))
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


@PAGES
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", read(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in map(
            anchor_of, re.findall(r"^## (.*)$", read(target), re.MULTILINE)
        )


def anchor_of(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
