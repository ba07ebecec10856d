"""A backup: an archive in pg_dump's custom format, followed by one line of JSON, its manifest.

pg_restore reads such a file like any other, because it never reads behind the archive's end. A
restored database is checked against the manifest, which `tail -n1` shows.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.core.database import Database
from db.ops.backup_seal import BackupKey, BackupRejected
from db.ops.pg_client_tools import run_program

_MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


class Manifest(BaseModel):
    """The content of a backup.

    `schema_version` is the newest migration, `revision` the change log's, `rows` the number of rows
    by table, `size` the archive's in bytes and `sha256` its digest. `seal` is the HMAC of all else,
    empty in a backup of a version that sealed none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_registry_backup: Literal[1] = 1
    taken_at: datetime
    postgres: int
    schema_version: str
    revision: int
    rows: dict[Annotated[str, Field(pattern="^[a-z_]+$")], NonNegativeInt]
    size: int = 0
    sha256: str = ""
    seal: str = ""

    def to_sealed_content(self) -> bytes:
        return self.model_dump_json(exclude={"seal"}).encode()


async def create_backup(url: URL, path: Path, key: BackupKey) -> Manifest:
    """Back up one snapshot of the running database, and replace `path` once the backup is complete.

    The backup is sealed by the key, which is created if there is none. If it raises, `path` is
    unchanged. Raises: BackupRejected: the database has no registry in it. ProgramMissing and
    ProgramFailed: pg_dump. Unavailable, OSError, DBAPIError.
    """
    database = Database(url)
    try:
        with _open_replacement(path) as new:
            async with database.engine.connect() as connection:
                snapshot, manifest = await _export_snapshot(connection)
                await _run_pg_dump(url, new, snapshot, manifest.postgres)
            return await asyncio.to_thread(_append_manifest, new, manifest, key)
    finally:
        await database.close()


def read_manifest(path: Path) -> Manifest:
    """Return the manifest. Raises: BackupRejected: the file is not a complete backup. OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LINE_BYTES))
        line = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
        try:
            manifest = Manifest.model_validate_json(line)
        except ValidationError as error:
            raise BackupRejected(
                f"{path} is not a backup of a registry, or not a complete one"
            ) from error
        if (
            manifest.size + len(line) + 2 != size
            or _compute_digest(file, manifest.size) != manifest.sha256
        ):
            raise BackupRejected(f"{path} is damaged: its digest or size has changed")
    return manifest


@contextmanager
def _open_replacement(path: Path) -> Iterator[Path]:
    """Yield a new file, readable by its owner alone, that replaces `path` after the block."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    new = Path(name)
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


_LIST_TABLES = text("""
SELECT relname FROM pg_class
WHERE relnamespace = CAST(current_schema() AS regnamespace) AND relkind IN ('r', 'p')
  AND NOT relispartition AND relname ~ '^[a-z_]+$'
ORDER BY relname
""")


async def _export_snapshot(connection: AsyncConnection) -> tuple[str, Manifest]:
    """Return the name of a snapshot, valid during the transaction, and its manifest."""
    await connection.execution_options(isolation_level="REPEATABLE READ")
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    snapshot = await connection.scalar(text("SELECT pg_export_snapshot()"))
    tables = (await connection.scalars(_LIST_TABLES)).all()
    if "alembic_version" not in tables or "registry_state" not in tables:
        raise BackupRejected("the database has no registry in it")
    row = await connection.execute(
        text(
            "SELECT now(), CAST(current_setting('server_version_num') AS int) / 10000,"
            " version_num, revision FROM alembic_version, registry_state"
        )
    )
    taken_at, postgres, schema_version, revision = row.one()
    rows = {
        table: await connection.scalar(text(f"SELECT count(*) FROM {table}"))  # noqa: S608
        for table in tables
    }
    return str(snapshot), Manifest(
        taken_at=taken_at,
        postgres=postgres,
        schema_version=schema_version,
        revision=revision,
        rows=rows,
    )


async def _run_pg_dump(url: URL, path: Path, snapshot: str, server_version: int) -> None:
    arguments = ("--format=custom", "--no-password", f"--snapshot={snapshot}", f"--file={path}")
    async with run_program("pg_dump", *arguments, min_version=server_version, url=url) as dump:
        await dump.finish()


def _append_manifest(path: Path, manifest: Manifest, key: BackupKey) -> Manifest:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        complete = manifest.model_copy(update={"size": size, "sha256": _compute_digest(file, size)})
        seal = key.seal(complete.to_sealed_content())
        complete = complete.model_copy(update={"seal": seal})
        file.seek(size)
        file.write(b"\n%s\n" % complete.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    return complete


def _compute_digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of the first `size` bytes of the file."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()
