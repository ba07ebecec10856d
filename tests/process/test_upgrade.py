"""An upgrade without downtime: each migration lets the version before it go on with its work."""

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
"""Before it, there was no version that had to go on."""


async def test_migrations_since_the_first_release_let_the_version_before_go_on(
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
    assert {sql: why for sql in executed if (why := find_incompatibilities(sql))} == {}


def git(*arguments: str) -> bytes:
    """Raises CalledProcessError where there is no history, OSError where there is no git."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def commit_before() -> str:
    """Of the code before the newest migration; of the oldest with all of ours while there is none.

    Raises LookupError where the history does not have either.
    """
    ours = sorted(path.name for path in (ROOT / VERSIONS).glob("[0-9]*.py"))
    found: dict[tuple[str, ...], str] = {}
    for commit in git("log", "--format=%H", "--", VERSIONS).decode().split():
        listed = git("ls-tree", "--name-only", f"{commit}:{VERSIONS}").decode().split()
        found.setdefault(tuple(name for name in listed if name[0].isdigit()), commit)
    if git("rev-parse", "--is-shallow-repository").strip() == b"true":
        raise LookupError("it is shallow")
    return found.get(tuple(ours[:-1])) or found[tuple(ours)]


@pytest.fixture
def version_before(tmp_path: Path) -> tuple[Path, str]:
    """Its code, and the schema that it needs."""
    try:
        archive = git(
            "archive", "--format=zip", commit_before(), "agent", "db", "graph", "migrations"
        )
    except (OSError, LookupError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the version before this is not in the history here: {error}")
    folder = tmp_path / "before"
    # No tar: its filters came with Python 3.11.4, and from 3.12 on it warns without one.
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return folder, max((folder / VERSIONS).glob("[0-9]*.py")).stem.partition("_")[0]


async def test_the_version_before_and_this_one_serve_the_same_fleet_at_once(
    version_before: tuple[Path, str], empty_database_url: URL, tmp_path: Path
) -> None:
    folder, schema = version_before
    database = Database(empty_database_url)
    await migrate(database.engine, schema)
    settings = FAST | make_environment(empty_database_url) | {"PYTHONPATH": str(folder)}
    settings |= {"NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "10"}
    async with (
        run_program(sys.executable, "-P", "-m", "graph", "serve", **settings) as process,
        httpx.AsyncClient(timeout=30) as http,
    ):
        url = (await process.line(r"GraphQL +(\S+)")).group(1)

        async def old_beat(node_id: str, sequence: int) -> None:
            said = {"nodeId": node_id, "bootId": "boot-1", "sequence": sequence}
            reply = await http.post(url, json={"query": BEAT, "variables": {"input": said}})
            assert reply.json()["data"]["recordHeartbeat"]["status"] == "ONLINE", reply.text

        async def old_register(node_id: str) -> None:
            said = {"nodeId": node_id, "bootId": "boot-1", "role": "BACKUP", "type": "WORKER"}
            reply = await http.post(url, json={"query": REGISTER, "variables": {"input": said}})
            assert reply.json()["data"]["registerNode"]["created"], reply.text

        await old_register("before")
        await old_beat("before", 1)
        await migrate(database.engine)
        await old_beat("before", 2)
        async with run_server(empty_database_url, tmp_path) as server:
            async with (
                connect(url.replace("http", "ws")) as old,
                connect(server.websocket_url) as new,
            ):
                for client in (old, new):
                    await client.subscribe("1", CHANGES, after="3")  # behind the seeds and `before`
                await register(server, "after")
                await old_register("between")
                for client in (old, new):
                    for node in ("after", "between"):
                        told = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
                        assert told["change"]["nodeId"] == node
            # Whichever of them is asked.
            await beat(server, "before", 3)
            await old_beat("after", 1)
            await old_beat("before", 4)
            await beat(server, "between", 1)
            assert await process.stop(signal.SIGTERM) == 0
            await beat(server, "before", 5)
        assert not any("error" in line for line in process.lines), process.lines
    assert await fetch_rows(
        database,
        "SELECT node_id, status FROM nodes WHERE status_reason <> 'seeded' ORDER BY node_id",
    ) == [("after", "online"), ("before", "online"), ("between", "online")]
    await database.close()
