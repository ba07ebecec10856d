"""Migrating a database to this version's schema, and rejecting one at another schema."""

from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine

_LOCK_NAME = "node_registry_migrations"


class SchemaMismatch(Exception):
    """The database is not at the schema that this version needs.

    `found` is its schema, None without one; `needed` is this version's. `ahead` says that a newer
    version of the registry made it.
    """

    def __init__(self, found: str | None, needed: str, *, ahead: bool) -> None:
        self.found, self.needed, self.ahead = found, needed, ahead
        remedy = (
            "start the version of the registry that made it, or a newer one"
            if ahead
            else "run `node-registry migrate`"
        )
        super().__init__(
            f"the database is at schema {found or 'none'}, this registry needs {needed}: {remedy}"
        )


async def migrate(
    engine: AsyncEngine, target: str = "head", *, lock_timeout_seconds: float = 5
) -> None:
    """Apply the missing migrations. Replicas that start at once wait for one another.

    Each migration is one transaction. Raises: SchemaMismatch: the database is at a newer schema.
    DBAPIError: a lock was not acquired in time; the migration that needed it changed nothing, so
    that it can be tried again.
    """
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SET statement_timeout = '10min'")
        await connection.execute(sa.select(sa.func.pg_advisory_lock(sa.func.hashtext(_LOCK_NAME))))
        # A migration yields to the service: others queue behind a lock that it waits for.
        await connection.exec_driver_sql(
            f"SET lock_timeout = '{round(lock_timeout_seconds * 1000)}ms'"
        )
        await connection.commit()
        try:
            await connection.run_sync(_run_migrations, target)
        finally:
            await connection.invalidate()  # ends the session, and with it the lock and the settings


def list_known_schemas() -> set[str]:
    """Return the schemas that this version can migrate to its own, its own included."""
    return _list_revisions(ScriptDirectory.from_config(_make_config()))


async def require_current_schema(engine: AsyncEngine) -> None:
    """Check the schema of the database.

    Raises: SchemaMismatch: it is not exactly this version's.
    """
    async with engine.connect() as connection:
        found = await connection.run_sync(
            lambda sync: MigrationContext.configure(sync).get_current_revision()
        )
    script = ScriptDirectory.from_config(_make_config())
    needed = script.get_current_head() or ""
    if found != needed:
        ahead = found is not None and found not in _list_revisions(script)
        raise SchemaMismatch(found, needed, ahead=ahead)


def _run_migrations(connection: sa.Connection, target: str) -> None:
    config = _make_config()
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in _list_revisions(script):
        raise SchemaMismatch(found, script.get_current_head() or "", ahead=True)
    connection.rollback()  # else Alembic runs all migrations in this transaction
    if target == "base":
        command.downgrade(config, target)
    else:
        command.upgrade(config, target)


def _list_revisions(script: ScriptDirectory) -> set[str]:
    return {revision.revision for revision in script.walk_revisions()}


def _make_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    return config
