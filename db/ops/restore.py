"""Makes a database what it was when a backup was taken: all of it, or nothing has changed."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.core.database import Database
from db.core.migrate import list_known_schemas, migrate
from db.ops.backup import BackupRefused, Manifest, manifest_of
from db.ops.pg_client_tools import Program, running

REVISIONS_SKIPPED = 1_000_000_000
"""By which the change log goes on after what was restored.

Who followed it knows revisions that were given after the backup. None of them is given again, so
that each such follower is told to resync, instead of missing what has its numbers now.
"""

_TRANSACTION_TIMEOUT = b"SET transaction_timeout = 0;\n"
_SINCE_POSTGRES = 17


async def check(path: Path) -> Manifest:
    """Reads all of it, and touches no database. Raises BackupRefused and ProgramMissing."""
    manifest = await asyncio.to_thread(manifest_of, path)
    if manifest.schema_version not in list_known_schemas():
        raise BackupRefused(
            f"{path} is of schema {manifest.schema_version}, which this version does not know:"
            " restore it with the version that made it, or a newer one"
        )
    async with running("pg_restore", "--list", str(path), least=manifest.postgres) as reader:
        await reader.finish()
    return manifest


async def restore(url: URL, path: Path, *, replace: bool) -> Manifest:
    """In one transaction; a backup of an older schema is then brought to this version's.

    The rights of other roles are those that the database itself has for new tables. Raises
    BackupRefused, ProgramMissing, Unavailable and DBAPIError.
    """
    manifest = await check(path)
    database = Database(url)
    try:
        async with database.engine.connect() as connection:
            server = await _server_of(connection, manifest)
            if not replace and await _holds_something(connection):
                raise BackupRefused(
                    f"the database {url.database} is not empty: --replace gives up all that it has"
                )
        await _load(url, path, manifest, server)
        await migrate(database.engine)
    finally:
        await database.close()
    return manifest


_PLACE = text("""
SELECT CAST(current_setting('server_version_num') AS int) / 10000,
       (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND application_name LIKE 'node-registry%'),
       (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('nodes')),
       current_user
""")


async def _server_of(connection: AsyncConnection, manifest: Manifest) -> int:
    """Its major version. Raises BackupRefused where the backup does not belong."""
    postgres, registries, owner, user = (await connection.execute(_PLACE)).one()
    if postgres < manifest.postgres:
        raise BackupRefused(
            f"the backup is of PostgreSQL {manifest.postgres}, and this is {postgres}: restore it"
            f" to {manifest.postgres} or newer"
        )
    if registries:
        raise BackupRefused("a registry is at work on the database: stop it first")
    if owner not in {None, user}:
        raise BackupRefused(f"the tables are {owner}'s, not {user}'s: restore as their owner")
    return int(postgres)


_OURS = text("""
SELECT count(*) > 0, coalesce(bool_or(oid = to_regclass('tokens')), false) FROM pg_class
WHERE relnamespace = CAST(current_schema() AS regnamespace)
""")
_USED = text("""
SELECT EXISTS (SELECT FROM status_changes WHERE reason <> 'seeded')
       OR EXISTS (SELECT FROM heartbeat_log) OR EXISTS (SELECT FROM tokens)
""")


async def _holds_something(connection: AsyncConnection) -> bool:
    """More than migrations make."""
    anything, ours = (await connection.execute(_OURS)).one()
    return anything and (not ours or bool(await connection.scalar(_USED)))


_BEGIN = """
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

# What was made anew has the rights that the database gives by default: too many for some of it.
_END = """
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


def _end(manifest: Manifest) -> bytes:
    counted = "".join(
        f"IF (SELECT count(*) FROM {table}) <> {count} THEN RAISE EXCEPTION"  # noqa: S608  # letters
        f" '{table} has not the {count} rows of the backup'; END IF;\n"
        for table, count in manifest.rows.items()
    )
    skipped = f"UPDATE registry_state SET revision = revision + {REVISIONS_SKIPPED};\n"  # noqa: S608  # ours
    return f"{_END}DO $$ BEGIN\n{counted}END $$;\n{skipped}COMMIT;\n".encode()


async def _load(url: URL, path: Path, manifest: Manifest, server: int) -> None:
    """Through psql, which commits nothing unless it was told all of it."""
    reading = running(
        "pg_restore",
        *("--file=-", "--schema=public", "--no-owner", "--no-privileges", "--no-tablespaces"),
        *("--no-comments", "--no-security-labels", str(path)),
        least=manifest.postgres,
        stdout=PIPE,
    )
    writing = running(
        "psql",
        *("--no-psqlrc", "--no-password", "--quiet", "--set=ON_ERROR_STOP=1"),
        least=manifest.postgres,
        url=url,
        stdin=PIPE,
    )
    async with reading as reader, writing as writer:
        with suppress(ConnectionError):  # psql has ended, and says why
            await writer.tell(_BEGIN.encode())
            async for chunk in _statements(reader, server):
                await writer.tell(chunk)
            await reader.finish()
            await writer.tell(_end(manifest))
        await writer.finish()


async def _statements(reader: Program, server: int) -> AsyncIterator[bytes]:
    """What pg_restore prints, without what an older server does not know."""
    async for line in reader.lines():
        if line != _TRANSACTION_TIMEOUT or server >= _SINCE_POSTGRES:
            yield line
        if line.startswith(b"SELECT pg_catalog.set_config('search_path'"):
            break  # behind the settings; a line of data may be long
    async for chunk in reader.chunks():
        yield chunk
