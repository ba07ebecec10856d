"""An upgrade without downtime: the previous version keeps working after each migration."""

import io
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL, event

from db.core.database import Database
from db.core.migrate import migrate
from tests.support.api import BEAT, CHANGES, REGISTER, beat, register
from tests.support.commands import make_environment
from tests.support.fleet import fetch_rows
from tests.support.live_server import run_server
from tests.support.migration_rules import find_incompatibilities
from tests.support.paths import ROOT
from tests.support.processes import FAST, run_program
from tests.support.transport_ws import connect

VERSIONS = "migrations/versions"
FIRST_RELEASE = "0006"
"""The schema of the first release; migrations before it need not be compatible."""


async def test_migrations_since_the_first_release_are_compatible_with_the_previous_version(
    empty_database_url: URL,
) -> None:
    database = Database(empty_database_url)
    await migrate(database.engine, FIRST_RELEASE)
    executed: list[str] = []
    event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: executed.append(statement),
    )
    await migrate(database.engine)
    await database.close()
    assert executed
    assert {sql: reason for sql in executed if (reason := find_incompatibilities(sql))} == {}


def run_git(*arguments: str) -> bytes:
    """Run git and return its output.

    Raises: CalledProcessError: there is no history; OSError: there is no git.
    """
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def find_previous_commit() -> str:
    """Return the newest commit before the newest migration, else the oldest with all migrations.

    Raises: LookupError: the history has neither.
    """
    migrations = sorted(path.name for path in (ROOT / VERSIONS).glob("[0-9]*.py"))
    commits: dict[tuple[str, ...], str] = {}
    for commit in run_git("log", "--format=%H", "--", VERSIONS).decode().split():
        names = run_git("ls-tree", "--name-only", f"{commit}:{VERSIONS}").decode().split()
        commits.setdefault(tuple(name for name in names if name[0].isdigit()), commit)
    if run_git("rev-parse", "--is-shallow-repository").strip() == b"true":
        raise LookupError("it is shallow")
    return commits.get(tuple(migrations[:-1])) or commits[tuple(migrations)]


@pytest.fixture
def previous_version(tmp_path: Path) -> tuple[Path, str]:
    """The folder with the code of the previous version, and the schema that it needs."""
    try:
        archive = run_git(
            "archive", "--format=zip", find_previous_commit(), "agent", "db", "graph", "migrations"
        )
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the previous version is not in the history here: {error}")
    folder = tmp_path / "before"
    # Zip, because tar has filters only from Python 3.11.4 on, and warns without one from 3.12 on.
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return folder, max((folder / VERSIONS).glob("[0-9]*.py")).stem.partition("_")[0]


async def test_the_previous_version_and_this_one_serve_the_same_fleet_at_once(
    previous_version: tuple[Path, str], empty_database_url: URL, tmp_path: Path
) -> None:
    folder, schema = previous_version
    database = Database(empty_database_url)
    await migrate(database.engine, schema)
    settings = FAST | make_environment(empty_database_url) | {"PYTHONPATH": str(folder)}
    settings |= {"NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "10"}
    async with (
        run_program(sys.executable, "-P", "-m", "graph", "serve", **settings) as process,
        httpx.AsyncClient(timeout=30) as http,
    ):
        url = (await process.wait_for_line(r"GraphQL +(\S+)")).group(1)

        async def beat_previous(node_id: str, sequence: int) -> None:
            heartbeat = {"nodeId": node_id, "bootId": "boot-1", "sequence": sequence}
            reply = await http.post(url, json={"query": BEAT, "variables": {"input": heartbeat}})
            assert reply.json()["data"]["recordHeartbeat"]["status"] == "ONLINE", reply.text

        async def register_previous(node_id: str) -> None:
            node = {"nodeId": node_id, "bootId": "boot-1", "role": "BACKUP", "type": "WORKER"}
            reply = await http.post(url, json={"query": REGISTER, "variables": {"input": node}})
            assert reply.json()["data"]["registerNode"]["created"], reply.text

        await register_previous("before")
        await beat_previous("before", 1)
        await migrate(database.engine)
        await beat_previous("before", 2)
        async with run_server(empty_database_url, tmp_path) as server:
            async with (
                connect(url.replace("http", "ws")) as old,
                connect(server.websocket_url) as new,
            ):
                for client in (old, new):
                    await client.subscribe("1", CHANGES, after="3")  # after the seeds and `before`
                await register(server, "after")
                await register_previous("between")
                for client in (old, new):
                    for node_id in ("after", "between"):
                        event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
                        assert event["change"]["nodeId"] == node_id
            # Heartbeats reach either version, whichever has registered the node.
            await beat(server, "before", 3)
            await beat_previous("after", 1)
            await beat_previous("before", 4)
            await beat(server, "between", 1)
            assert await process.stop(signal.SIGTERM) == 0
            await beat(server, "before", 5)
        assert not any("error" in line for line in process.lines), process.lines
    assert await fetch_rows(
        database,
        "SELECT node_id, status FROM nodes WHERE status_reason <> 'seeded' ORDER BY node_id",
    ) == [("after", "online"), ("before", "online"), ("between", "online")]
    await database.close()
