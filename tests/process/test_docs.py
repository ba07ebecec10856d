"""The commands and statements in docs/ work on a registry of their own.

The `console` blocks of a page are run unchanged, and each command must succeed. An `sh` block needs
what no test machine has, such as cron: its syntax is checked, and that it contains a command that
cannot run here.
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
NOT_ON_TEST_MACHINES = re.compile(r"\b(systemctl|launchctl|docker|apt|ssh|rsync)\b")


def read_page(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def find_blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, without the indent of a block in a list."""
    blocks = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```$", read_page(page), re.DOTALL | re.MULTILINE
    )
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def find_commands(block: str) -> list[str]:
    """Return the commands after a `$`, with their continuation lines; other lines are output."""
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", block, re.MULTILINE)


@dataclass(frozen=True)
class Workplace:
    """A running registry, and the environment of an operator of it."""

    folder: Path
    data_dir: Path
    address: str
    environment: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workplace() -> AsyncIterator[Workplace]:
    with tempfile.TemporaryDirectory(prefix="node-registry-test-") as name:
        data_dir = Path(name) / "data"
        async with run_registry(data_dir, NODE_REGISTRY_SWEEP_INTERVAL_SECONDS="5") as (_, graphql):
            url = get_running_url(data_dir)
            yield Workplace(
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
async def test_every_console_command_succeeds(workplace: Workplace) -> None:
    """Each page has a shell of its own; a command that an earlier page contains is not repeated."""
    seen: dict[str, None] = {}
    script = ["set -euxo pipefail"]
    for page in DOCS:
        page_commands = [
            command for block in find_blocks(page, "console") for command in find_commands(block)
        ]
        script += ["(", *(command for command in page_commands if command not in seen), ":", ")"]
        seen |= dict.fromkeys(page_commands)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", "\n".join(script).replace("localhost:9205", workplace.address)),
        cwd=workplace.folder,
        env=workplace.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(100):
        output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()
    assert b'"errors"' not in output, output.decode()


@PAGES
@ASYNC
async def test_every_sql_statement_succeeds(workplace: Workplace, page: Path) -> None:
    async with open_administrator(get_running_url(workplace.data_dir)) as execute:
        for statement in find_blocks(page, "sql"):
            await execute(statement)


@PAGES
def test_every_sh_block_is_valid_shell_and_needs_another_machine(page: Path) -> None:
    for block in find_blocks(page, "sh"):
        assert NOT_ON_TEST_MACHINES.search(block), block
        process = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        assert (process.returncode, process.stderr) == (0, "")


@PAGES
def test_every_block_has_a_language_that_is_tested(page: Path) -> None:
    fences = re.findall(r"^ *```(\w*)$", read_page(page), re.MULTILINE)
    assert set(fences) <= {"console", "sql", "sh", ""}
    assert fences.count("") == len(fences) / 2  # a fence without a language closes a block


@ASYNC
async def test_every_named_metric_exists(workplace: Workplace) -> None:
    async with httpx.AsyncClient() as http:
        metrics = (await http.get(f"http://{workplace.address}/metrics")).text
    for text in map(read_page, DOCS):
        for metric in re.findall(r"`(node_registry_[a-z_]+)`", text):
            assert f"# TYPE {metric} " in metrics


def test_every_alert_has_a_section_on_troubleshooting() -> None:
    alerts = (DOCS[0].parent.parent / "deploy" / "prometheus" / "alerts.yaml").read_text("utf-8")
    documented = re.findall(r"\b(NodeRegistry\w+)", read_page(DOCS[0].parent / "troubleshoot.md"))
    assert sorted(documented) == sorted(re.findall(r"- alert: (\w+)", alerts))


@PAGES
def test_every_named_setting_exists(page: Path) -> None:
    names = re.findall(r"\b[A-Z]+(?:_[A-Z]+){1,4}(?:_SECONDS|_RATE|_SIZE|_LAG)\b", read_page(page))
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


@PAGES
def test_every_link_has_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", read_page(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in map(
            make_anchor, re.findall(r"^## (.*)$", read_page(target), re.MULTILINE)
        )


def make_anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
