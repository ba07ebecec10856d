"""Restoring a database from a backup, completely or not at all."""

import asyncio
import re
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.core.database import Database
from db.core.migrate import list_known_schemas, migrate
from db.ops.backup import Manifest, read_manifest
from db.ops.backup_seal import BackupKey, BackupRejected
from db.ops.pg_client_tools import Program, run_program

REVISIONS_SKIPPED = 1_000_000_000
"""The gap in the change log after the restored revisions.

Followers know revisions that were given after the backup. None of them is given again, so that each
of these followers is told to resync, instead of missing the changes that would have their numbers.
"""

# A line of `pg_restore --list`: 215; 1259 16385 TABLE public nodes postgres
_ENTRY = re.compile(r"\d+; \d+ \d+ (?P<kind>[A-Z][A-Z ]*?) (?:public|-) (?P<name>.+)")
_KNOWN_KINDS = {
    *("TABLE", "TABLE DATA", "TABLE ATTACH", "INDEX", "INDEX ATTACH", "CONSTRAINT"),
    *("CHECK CONSTRAINT", "FK CONSTRAINT", "DEFAULT", "SEQUENCE", "SEQUENCE SET"),
    *("SEQUENCE OWNED BY", "SCHEMA", "ACL", "DEFAULT ACL", "COMMENT", "STATISTICS DATA"),
}
_KNOWN_FUNCTIONS = (
    "drop_partition(regclass)",
    "make_heartbeat_day(date)",
    "make_metrics_month(date)",
    "registry_now()",
    "repeat_audit_entry(bigint)",
    "trim_audit_log(timestamp with time zone, integer)",
)

_TRANSACTION_TIMEOUT = b"SET transaction_timeout = 0;\n"
_SINCE_POSTGRES = 17


async def check_backup(path: Path, key: BackupKey, *, trust_unsealed: bool = False) -> Manifest:
    """Read the whole backup, without a database, and return its manifest.

    Raises: BackupRejected: it is not sealed by the key, damaged or of an unknown schema; unless it
    must be sealed, it contains objects that migrations do not create. ProgramMissing,
    ProgramFailed.
    """
    manifest = await asyncio.to_thread(read_manifest, path)
    if not trust_unsealed:
        key.require_seal(path, manifest.to_sealed_content(), manifest.seal)
    if manifest.schema_version not in list_known_schemas():
        raise BackupRejected(
            f"{path} is at schema {manifest.schema_version}, which this version does not know:"
            " restore it with the version that made it, or a newer one"
        )
    async with run_program(
        "pg_restore",
        *("--list", "--schema=public", str(path)),
        min_version=manifest.postgres,
        stdout=PIPE,
    ) as reader:
        entries = b"".join([chunk async for chunk in reader.read_chunks()])
        await reader.finish()
    if trust_unsealed:
        _require_known_objects(path, entries.decode(errors="replace"))
    return manifest


def _require_known_objects(path: Path, entries: str) -> None:
    """Check that pg_restore lists nothing but tables, what belongs to them, and our functions.

    This finds what was added to the database of a backup. A forged archive can hide what it runs.
    """
    for line in entries.splitlines():
        if line and not line.startswith(";") and not _is_known(_ENTRY.fullmatch(line)):
            raise BackupRejected(f"{path} contains what no registry creates: {line}")


def _is_known(entry: re.Match[str] | None) -> bool:
    if entry is None:
        return False
    is_function = entry["kind"] == "FUNCTION" and entry["name"].startswith(_KNOWN_FUNCTIONS)
    return is_function or entry["kind"] in _KNOWN_KINDS


async def restore_backup(
    url: URL, path: Path, key: BackupKey, *, replace: bool, trust_unsealed: bool = False
) -> Manifest:
    """Restore the backup in one transaction, then migrate the database to this version's schema.

    With `replace` the database need not be empty. Other roles get the database's default privileges
    for new tables. Raises: BackupRejected: the backup or the database is not suitable.
    ProgramMissing, ProgramFailed, Unavailable, DBAPIError.
    """
    manifest = await check_backup(path, key, trust_unsealed=trust_unsealed)
    database = Database(url)
    try:
        async with database.engine.connect() as connection:
            server_version = await _check_target(connection, manifest)
            if not replace and await _has_content(connection):
                raise BackupRejected(
                    f"the database {url.database} is not empty: --replace deletes all that it has"
                )
        await _load_archive(url, path, manifest, server_version)
        await migrate(database.engine)
    finally:
        await database.close()
    return manifest


_TARGET_STATE = text("""
SELECT CAST(current_setting('server_version_num') AS int) / 10000,
       (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND application_name LIKE 'node-registry%'),
       (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('nodes')),
       current_user
""")


async def _check_target(connection: AsyncConnection, manifest: Manifest) -> int:
    """Return the server's major version. Raises: BackupRejected: the target is not suitable."""
    postgres, registry_count, owner, user = (await connection.execute(_TARGET_STATE)).one()
    if postgres < manifest.postgres:
        raise BackupRejected(
            f"the backup is of PostgreSQL {manifest.postgres}, and this is {postgres}: restore it"
            f" to {manifest.postgres} or newer"
        )
    if registry_count:
        raise BackupRejected("a registry runs on the database: stop it first")
    if owner not in {None, user}:
        raise BackupRejected(f"the tables belong to {owner}, not to {user}: restore as their owner")
    return int(postgres)


_HAS_TABLES = text("""
SELECT count(*) > 0, coalesce(bool_or(oid = to_regclass('tokens')), false) FROM pg_class
WHERE relnamespace = CAST(current_schema() AS regnamespace)
""")
_HAS_ROWS = text("""
SELECT EXISTS (SELECT FROM status_changes WHERE reason <> 'seeded')
       OR EXISTS (SELECT FROM heartbeat_log) OR EXISTS (SELECT FROM tokens)
""")


async def _has_content(connection: AsyncConnection) -> bool:
    """Return whether the database has more in it than migrations make."""
    has_tables, has_registry = (await connection.execute(_HAS_TABLES)).one()
    return has_tables and (not has_registry or bool(await connection.scalar(_HAS_ROWS)))


_DROP_EVERYTHING = """
BEGIN;
DO $$ DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('DROP %s %s CASCADE', kind, name)
        FROM (
            SELECT 'TABLE' AS kind, oid::regclass::text AS name, oid FROM pg_class
            WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
              AND NOT relispartition
            UNION ALL
            SELECT 'ROUTINE', oid::regprocedure::text, oid FROM pg_proc
            WHERE pronamespace = current_schema()::regnamespace
        ) things
        WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = things.oid AND d.deptype = 'e')
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;
"""

# Recreated tables have the database's default privileges: too many for some of them.
_REVOKE_DEFAULT_PRIVILEGES = """
RESET search_path;
DO $$ DECLARE
    taken record;
BEGIN
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM PUBLIC', current_schema());
    FOR taken IN
        SELECT DISTINCT c.oid::regclass AS name,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid IN ('alembic_version'::regclass, to_regclass('audit_log'))
          AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE, TRIGGER ON %s FROM %s',
                       taken.name, taken.grantee);
        IF taken.name = 'alembic_version'::regclass THEN
            EXECUTE format('REVOKE INSERT ON %s FROM %s', taken.name, taken.grantee);
        END IF;
    END LOOP;
END $$;
"""


def _make_closing_statements(manifest: Manifest) -> bytes:
    row_checks = "".join(
        f"IF (SELECT count(*) FROM {table}) <> {count} THEN RAISE EXCEPTION"  # noqa: S608  # only letters
        f" '{table} has not the {count} rows of the backup'; END IF;\n"
        for table, count in manifest.rows.items()
    )
    revision_skip = f"UPDATE registry_state SET revision = revision + {REVISIONS_SKIPPED};\n"  # noqa: S608  # ours
    closing = f"DO $$ BEGIN\n{row_checks}END $$;\n{revision_skip}COMMIT;\n"
    return f"{_REVOKE_DEFAULT_PRIVILEGES}{closing}".encode()


async def _load_archive(url: URL, path: Path, manifest: Manifest, server_version: int) -> None:
    """Load the archive through psql, which commits only at the last statement."""
    reading = run_program(
        "pg_restore",
        *("--file=-", "--schema=public", "--no-owner", "--no-privileges", "--no-tablespaces"),
        *("--no-comments", "--no-security-labels", str(path)),
        min_version=manifest.postgres,
        stdout=PIPE,
    )
    writing = run_program(
        "psql",
        *("--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1"),
        min_version=manifest.postgres,
        url=url,
        stdin=PIPE,
    )
    async with reading as reader, writing as writer:
        with suppress(ConnectionError):  # psql has ended, and finish() raises why
            await writer.write(_DROP_EVERYTHING.encode())
            async for chunk in _read_statements(reader, server_version):
                await writer.write(chunk)
            await reader.finish()
            await writer.write(_make_closing_statements(manifest))
        await writer.finish()


async def _read_statements(reader: Program, server_version: int) -> AsyncIterator[bytes]:
    """Yield what pg_restore prints, without settings that an older server does not know."""
    async for line in reader.read_lines():
        if line != _TRANSACTION_TIMEOUT or server_version >= _SINCE_POSTGRES:
            yield line
        if line.startswith(b"SELECT pg_catalog.set_config('search_path'"):
            break  # the settings end here; a line of data may be long
    async for chunk in reader.read_chunks():
        yield chunk
