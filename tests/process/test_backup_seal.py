"""The seal of a backup: what another installation made is not restored unless it is trusted."""

import stat
from pathlib import Path

import orjson
import pytest
from sqlalchemy import URL

from db.core.database import Database
from db.ops.backup import create_backup
from db.ops.backup_seal import BackupKey, BackupRejected
from db.ops.restore import check_backup, restore_backup
from tests.support.commands import make_environment, run
from tests.support.fleet import fetch_rows
from tests.support.provisioning import open_administrator

HOSTILE = {
    "function": "CREATE FUNCTION take() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "trigger": (
        "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN COPY (SELECT 1) TO PROGRAM 'touch {proof}'; RETURN NEW; END $$;"
        "CREATE TRIGGER take BEFORE INSERT ON nodes FOR EACH ROW EXECUTE FUNCTION take()"
    ),
    "rule": "CREATE RULE take AS ON DELETE TO nodes DO INSTEAD NOTHING",
    "view": "CREATE VIEW take AS SELECT secret_hash FROM tokens",
    "materialized view": "CREATE MATERIALIZED VIEW take AS SELECT 1 AS a",
    "policy": "CREATE POLICY take ON nodes USING (true)",
    "type": "CREATE TYPE take AS ENUM ('a')",
    "domain": "CREATE DOMAIN take AS int CHECK (VALUE > 0)",
    "aggregate": "CREATE AGGREGATE take(int) (SFUNC = int4pl, STYPE = int)",
    "operator": "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
}


@pytest.fixture
def key(tmp_path: Path) -> BackupKey:
    return BackupKey(tmp_path / "data" / "backup.key")


def make_unsealed(backup: Path) -> None:
    """Make a backup as the version before did, which had a digest and no seal."""
    archive, _, line = backup.read_bytes().rstrip().rpartition(b"\n")
    manifest = orjson.loads(line)
    del manifest["seal"]
    backup.write_bytes(b"%s\n%s\n" % (archive, orjson.dumps(manifest)))


async def list_tables(url: URL) -> list[str]:
    async with open_administrator(url) as ask:
        rows = await ask("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    return [row[0] for row in rows]


async def test_the_first_backup_creates_a_key_that_its_owner_alone_can_read(
    database_url: URL, tmp_path: Path, key: BackupKey
) -> None:
    await create_backup(database_url, tmp_path / "first", key)
    assert stat.S_IMODE(key.file.stat().st_mode) == 0o600
    content = key.file.read_text()
    await create_backup(database_url, tmp_path / "second", key)
    assert key.file.read_text() == content
    for backup in (tmp_path / "first", tmp_path / "second"):
        await check_backup(backup, BackupKey(key.file))
        assert content.strip() not in backup.read_bytes().decode(errors="replace")


async def test_restore_and_its_check_reject_what_the_key_does_not_seal(
    database_url: URL, empty_database_url: URL, tmp_path: Path, key: BackupKey
) -> None:
    own, unsealed, foreign = (tmp_path / name for name in ("own", "unsealed", "foreign"))
    await create_backup(database_url, own, key)
    foreign_key = BackupKey(tmp_path / "elsewhere")
    unsealed.write_bytes(own.read_bytes())
    make_unsealed(unsealed)
    await create_backup(database_url, foreign, foreign_key)
    no_key = BackupKey(tmp_path / "nothing")
    for backup, checked_by, problem in (
        (unsealed, key, "is not sealed"),
        (foreign, key, "is not sealed by the key in"),
        (own, no_key, "there is no key in"),
    ):
        with pytest.raises(BackupRejected, match=problem) as rejection:
            await check_backup(backup, checked_by)
        assert "--trust-unsealed" in str(rejection.value)
        assert "\n" not in str(rejection.value)
        with pytest.raises(BackupRejected, match=problem):
            await restore_backup(empty_database_url, backup, checked_by, replace=True)
        assert await list_tables(empty_database_url) == []
        await check_backup(backup, checked_by, trust_unsealed=True)
    assert not no_key.file.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"revision": 10**9},
        {"schema_version": "0001"},
        {"rows": {"nodes": 2}},
        {"taken_at": "2020-01-01T00:00:00Z"},
        {"postgres": 15},
        {"seal": "0" * 64},
        {"seal": "é"},
    ],
)
async def test_the_seal_covers_the_whole_manifest(
    database_url: URL, tmp_path: Path, key: BackupKey, change: dict[str, object]
) -> None:
    backup = tmp_path / "backup"
    await create_backup(database_url, backup, key)
    archive, _, line = backup.read_bytes().rstrip().rpartition(b"\n")
    backup.write_bytes(b"%s\n%s\n" % (archive, orjson.dumps(orjson.loads(line) | change)))
    with pytest.raises(BackupRejected, match="is not sealed by the key"):
        await check_backup(backup, key)


@pytest.mark.parametrize("content", ["", "secret", "0" * 63, "G" * 64, "0" * 64 + "\n\n"])
async def test_a_file_that_is_no_key_is_rejected_and_left_alone(
    database_url: URL, tmp_path: Path, key: BackupKey, content: str
) -> None:
    key.file.parent.mkdir()
    key.file.write_text(content)
    with pytest.raises(BackupRejected, match="is not a key for backups"):
        await create_backup(database_url, tmp_path / "backup", key)
    assert key.file.read_text() == content
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_backup_runs_nothing_sealed_by_another_key_or_trusted(
    database_url: URL,
    empty_database_url: URL,
    tmp_path: Path,
    kind: str,
) -> None:
    key, foreign_key = BackupKey(tmp_path / "key"), BackupKey(tmp_path / "foreign")
    key.seal(b"an earlier backup")
    proof, backup = tmp_path / "proof", tmp_path / "backup"
    async with open_administrator(database_url) as execute:
        for statement in HOSTILE[kind].format(proof=proof).split(";CREATE TRIGGER"):
            prefix = "" if statement.startswith("CREATE") else "CREATE TRIGGER"
            await execute(prefix + statement)
    await create_backup(database_url, backup, foreign_key)
    with pytest.raises(BackupRejected, match="is not sealed by the key"):
        await restore_backup(empty_database_url, backup, key, replace=True)
    with pytest.raises(BackupRejected, match="contains what no registry creates"):
        await restore_backup(empty_database_url, backup, key, replace=True, trust_unsealed=True)
    with pytest.raises(BackupRejected, match="contains what no registry creates"):
        await check_backup(backup, key, trust_unsealed=True)
    assert await list_tables(empty_database_url) == []
    assert not proof.exists()


async def test_the_commands_take_the_key_from_the_settings(
    database_url: URL, empty_database_url: URL, tmp_path: Path
) -> None:
    backup = str(tmp_path / "backup")
    own = {"NODE_REGISTRY_DATA_DIR": str(tmp_path / "own")}
    other = {"NODE_REGISTRY_BACKUP_KEY_FILE": str(tmp_path / "other.key")}
    status, _, errors = await run("backup", backup, **make_environment(database_url), **own)
    assert status == 0, errors
    assert (tmp_path / "own" / "backup.key").exists()
    target = make_environment(empty_database_url)
    for options in (["--check"], []):
        status, output, errors = await run("restore", *options, backup, **target, **other)
        assert (status, output, errors.count("\n")) == (1, "", 1)
        assert "there is no key in" in errors
    for options, environment in (
        (["--check"], own),
        (["--check", "--trust-unsealed"], other),
        ([], own),
        (["--replace", "--trust-unsealed"], other),
    ):
        status, _, errors = await run("restore", *options, backup, **target, **environment)
        assert status == 0, errors
    database = Database(empty_database_url)
    assert await fetch_rows(database, "SELECT count(*) FROM nodes") == [(2,)]
    await database.close()
