"""`node-registry backup` and `restore`: what a backup contains, and when restore rejects it."""

import asyncio
import itertools
import stat
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from db.core.database import Database
from db.core.migrate import migrate, require_current_schema
from db.ops import pg_client_tools
from db.ops.backup import Manifest, create_backup
from db.ops.backup_seal import BackupKey, BackupRejected
from db.ops.pg_client_tools import ProgramFailed, ProgramMissing
from db.ops.restore import REVISIONS_SKIPPED, check_backup, restore_backup
from db.registry import status_changes
from tests.support.api import CHANGES, beat, register
from tests.support.commands import make_environment, run
from tests.support.fleet import fetch_rows
from tests.support.live_server import StartServer, run_server
from tests.support.paths import read_files
from tests.support.provisioning import Provisioning, open_administrator
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

SEEDED = 2
"""The number of nodes that the first migration inserts, each with a change."""


async def test_a_restored_backup_contains_every_heartbeat_acknowledged_before_it_began(
    start_server: StartServer, database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup = tmp_path / "registry.backup"
    keys = {"NODE_REGISTRY_BACKUP_KEY_FILE": str(tmp_path / "keys" / "backup.key")}
    acknowledged: set[tuple[str, int]] = set()
    async with start_server() as server:

        async def keep_sending_heartbeats(node_id: str) -> None:
            await register(server, node_id)
            for sequence in itertools.count(1):
                await beat(server, node_id, sequence, metrics={"loadAverage": sequence})
                acknowledged.add((node_id, sequence))
                await asyncio.sleep(0.05)

        nodes = [asyncio.create_task(keep_sending_heartbeats(f"gpu-{n}")) for n in range(10)]
        await wait_until(lambda: len(acknowledged) >= 5 * len(nodes), seconds=60)
        before = set(acknowledged)
        environment = make_environment(database_url) | keys
        status, output, errors = await run("backup", str(backup), **environment)
        assert status == 0, errors
        assert len(acknowledged) > len(before)  # heartbeats continued during the backup
        newest = (await register(server, "late"))["node"]
        assert newest["status"] == "ONLINE"
        for task in nodes:
            task.cancel()
        await asyncio.gather(*nodes, return_exceptions=True)
    assert f"{backup} has {SEEDED + len(nodes)} nodes" in output
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert sorted(list_file_names(tmp_path)) == ["keys", backup.name]

    environment = make_environment(empty_database_url) | keys
    status, output, errors = await run("restore", str(backup), **environment)
    assert status == 0, errors
    assert "The database has 12 nodes" in output
    database = Database(empty_database_url)
    heartbeats = await fetch_rows(
        database,
        "SELECT n.node_id, CAST(h.metrics->>'load_average' AS float)"
        " FROM heartbeat_log h JOIN nodes n ON n.id = h.node_id",
    )
    assert before <= {(node, int(sequence)) for node, sequence in heartbeats}
    # The backup has neither the node that registered after it nor its change.
    assert await fetch_rows(database, "SELECT 1 FROM nodes WHERE node_id = 'late'") == []
    await database.close()
    async with run_server(empty_database_url, tmp_path) as server:
        assert (await beat(server, "gpu-0", 1_000_000))["status"] == "ONLINE"
        async with connect(server.websocket_url) as client:
            await client.subscribe("1", CHANGES, after=str(SEEDED + len(nodes) + 1))
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            assert event["__typename"] == "ResyncRequired"


def list_file_names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def get_key(backup: Path) -> BackupKey:
    """Return the key of the backups in the folder of this one."""
    return BackupKey(backup.parent / "key")


async def create_checked_backup(url: URL, path: Path) -> Manifest:
    """Create a backup and check it as a restore does."""
    manifest = await create_backup(url, path, get_key(path))
    assert await check_backup(path, get_key(path)) == manifest
    return manifest


def rewrite_manifest(path: Path, **entries: object) -> None:
    """Overwrite entries of the manifest, which is the last line of the backup, and seal it."""
    archive, _, line = path.read_bytes().rstrip().rpartition(b"\n")
    unsealed = Manifest.model_validate(orjson.loads(line) | entries | {"seal": ""})
    seal = get_key(path).seal(unsealed.to_sealed_content())
    path.write_bytes(
        b"%s\n%s\n" % (archive, orjson.dumps({**orjson.loads(line), **entries, "seal": seal}))
    )


ALTERATIONS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "without its beginning": lambda data: data[1:],
    "altered": lambda data: data.replace(b"nodes", b"modes", 1),
    "with more behind it": lambda data: data + b"x",
    "a plain archive": lambda data: data.rpartition(b"\n{")[0],
}


async def test_restore_rejects_an_altered_file(
    database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup, altered = tmp_path / "backup", tmp_path / "altered"
    await create_checked_backup(database_url, backup)
    for alteration in ALTERATIONS.values():
        altered.write_bytes(alteration(backup.read_bytes()))
        with pytest.raises(BackupRejected):
            await restore_backup(empty_database_url, altered, get_key(altered), replace=True)
    assert await count_node_tables(empty_database_url) == 0


async def count_node_tables(url: URL) -> int:
    async with open_administrator(url) as ask:
        rows = await ask("SELECT count(*) FROM pg_class WHERE relname = 'nodes'")
    return int(rows[0][0])


async def test_restore_rejects_a_backup_of_a_newer_schema_or_postgresql(
    database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    await create_checked_backup(database_url, backup)
    rewrite_manifest(backup, schema_version="9999")
    with pytest.raises(BackupRejected, match="is at schema 9999, which this version does not know"):
        await restore_backup(empty_database_url, backup, get_key(backup), replace=False)
    rewrite_manifest(backup, schema_version="0001", postgres=99)
    with pytest.raises(ProgramMissing, match="pg_restore of PostgreSQL 99 or newer is needed"):
        await restore_backup(empty_database_url, backup, get_key(backup), replace=False)
    assert await count_node_tables(empty_database_url) == 0


async def test_restore_replaces_a_database_with_data_only_on_request(
    database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    await create_checked_backup(database_url, backup)
    fresh = Database(empty_database_url)
    await migrate(fresh.engine)
    await fresh.close()
    # A database that contains only what migrations insert counts as empty.
    await restore_backup(empty_database_url, backup, get_key(backup), replace=False)
    async with open_administrator(empty_database_url) as execute:
        await execute("INSERT INTO rolled_up_hours (hour, heartbeats) VALUES (now(), 1)")
        await execute("UPDATE status_changes SET reason = 'registered' WHERE revision = 1")
        await execute("CREATE TABLE of_somebody ()")
    with pytest.raises(BackupRejected, match="is not empty: --replace"):
        await restore_backup(empty_database_url, backup, get_key(backup), replace=False)
    manifest = await restore_backup(empty_database_url, backup, get_key(backup), replace=True)
    restored = Database(empty_database_url)
    assert await fetch_rows(restored, "SELECT count(*) FROM rolled_up_hours") == [(0,)]
    assert await fetch_rows(restored, "SELECT to_regclass('of_somebody')") == [(None,)]
    async with restored.read() as session:
        assert await status_changes.read_revision(session) == manifest.revision + REVISIONS_SKIPPED
        dropped = await status_changes.trim_log(
            session, keep_rows=SEEDED, keep_seconds=10**9, batch=10
        )
    assert dropped == 0
    await restored.close()


async def test_a_failed_restore_leaves_the_database_unchanged(
    database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    manifest = await create_checked_backup(database_url, backup)
    await restore_backup(empty_database_url, backup, get_key(backup), replace=False)
    async with open_administrator(empty_database_url) as execute:
        await execute("INSERT INTO rolled_up_hours (hour, heartbeats) VALUES (now(), 1)")
    rewrite_manifest(backup, rows=manifest.rows | {"nodes": 3})
    with pytest.raises(ProgramFailed, match="nodes has not the 3 rows of the backup"):
        await restore_backup(empty_database_url, backup, get_key(backup), replace=True)
    async with open_administrator(empty_database_url) as ask:
        assert await ask("SELECT count(*) FROM rolled_up_hours") == [(1,)]


async def test_restore_rejects_a_database_on_which_a_registry_runs(
    start_server: StartServer, database_url: URL, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    async with start_server():
        await create_checked_backup(database_url, backup)
        with pytest.raises(BackupRejected, match="a registry runs on"):
            await restore_backup(database_url, backup, get_key(backup), replace=True)


async def test_restore_migrates_a_backup_of_an_older_schema(
    empty_database_url: URL, tmp_path: Path
) -> None:
    database = Database(empty_database_url)
    await migrate(database.engine, "0003")
    manifest = await create_checked_backup(empty_database_url, tmp_path / "backup")
    assert manifest.schema_version == "0003"
    await migrate(database.engine)
    await database.close()
    await restore_backup(
        empty_database_url, tmp_path / "backup", BackupKey(tmp_path / "key"), replace=False
    )
    await require_current_schema(database.engine)
    assert await fetch_rows(database, "SELECT count(*) FROM nodes") == [(SEEDED,)]
    await database.close()


async def test_a_service_role_serves_the_database_that_its_owner_has_restored(
    provisioning: Provisioning, database_url: URL, tmp_path: Path
) -> None:
    await provisioning.run()
    backup = tmp_path / "backup"
    owner, service = (
        provisioning.url(getattr(provisioning.names, r)) for r in ("owner", "service")
    )
    await create_checked_backup(database_url, backup)
    with pytest.raises(BackupRejected, match="restore as their owner"):
        await restore_backup(
            provisioning.administrator.set(database=owner.database),
            backup,
            get_key(backup),
            replace=True,
        )
    await restore_backup(owner, backup, get_key(backup), replace=False)
    async with run_server(service, tmp_path) as server:
        await register(server, "gpu-1")
        await beat(server, "gpu-1", 1)
    async with open_administrator(service) as execute:
        for statement in (
            "UPDATE audit_log SET actor = 'nobody'",
            "DELETE FROM alembic_version",
            "CREATE TABLE of_somebody ()",
        ):
            with pytest.raises(DBAPIError, match="permission denied"):
                await execute(statement)
    # Provisioning succeeds again, so the restore has kept the permissions.
    await provisioning.run()


async def test_a_failed_backup_leaves_the_existing_file_unchanged(
    database_url: URL, provisioning: Provisioning, tmp_path: Path
) -> None:
    backup = tmp_path / "backup"
    backup.write_text("an older one")
    await provisioning.run()
    service = provisioning.url(provisioning.names.service)
    with pytest.raises(ProgramFailed, match="SELECT privilege"):
        await create_backup(service, backup, get_key(backup))
    with pytest.raises(BackupRejected, match="has no registry in it"):
        await create_backup(database_url.set(database="template1"), backup, get_key(backup))
    assert read_files(tmp_path) == {"backup": "an older one"}


async def test_backup_reports_a_pg_dump_that_is_too_old(
    database_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_client_tools, "find_programs_dir", lambda: tmp_path)
    (tmp_path / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 14.2'\n")
    (tmp_path / "pg_dump").chmod(0o700)
    needed = r"pg_dump of PostgreSQL \d+ or newer is needed, .* 14.2: install .*postgresql-client"
    with pytest.raises(ProgramMissing, match=needed):
        await create_backup(database_url, tmp_path / "backup", BackupKey(tmp_path / "key"))
