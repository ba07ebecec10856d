"""Brings a database to this version's schema, and says when one is behind or ahead of it."""

from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine

_LOCK_NAME = "node_registry_migrations"


class SchemaMismatch(Exception):
    """The database's schema is not the one that this version of the registry needs."""

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
    """Applies what is missing. Replicas that start at once wait for one another.

    Each migration is one transaction. Raises DBAPIError when a lock is not had in time: the
    migration that wanted it has changed nothing then, try again.
    """
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SET statement_timeout = '10min'")
        await connection.execute(sa.select(sa.func.pg_advisory_lock(sa.func.hashtext(_LOCK_NAME))))
        # A migration gives way to the service: it must not queue for a lock with others behind it.
        await connection.exec_driver_sql(
            f"SET lock_timeout = '{round(lock_timeout_seconds * 1000)}ms'"
        )
        await connection.commit()
        try:
            await connection.run_sync(_run_migrations, target)
        finally:
            await connection.invalidate()  # gives up the lock and the settings with the session


def list_known_schemas() -> set[str]:
    """Those that this version can bring to its own, which is one of them."""
    return _list_revisions(ScriptDirectory.from_config(_make_config()))


async def require_current_schema(engine: AsyncEngine) -> None:
    """Raises SchemaMismatch unless the database is exactly at this version's schema."""
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
    connection.rollback()  # else Alembic takes this transaction for all migrations
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
