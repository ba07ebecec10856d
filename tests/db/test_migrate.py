"""The schema: what the migrations build, and how they share a database with a running service."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from db.core.database import Database
from db.core.enums import ProfileType
from db.core.migrate import SchemaMismatch, migrate, require_current_schema
from db.core.tables import Table
from db.registry.profiles import ProfileContent
from tests.support.fleet import beat, fetch_rows, register
from tests.support.waiting import wait_until

OURS = """
CREATE TEMPORARY VIEW ours AS
SELECT oid FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
  AND relname <> 'alembic_version'
"""
CATALOG = {
    "tables": """
        SELECT relname, relkind, reloptions, pg_get_partkeydef(oid)
        FROM pg_class JOIN ours USING (oid)""",
    "columns": """
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull,
               attidentity, attgenerated, attcollation, pg_get_expr(adbin, adrelid)
        FROM pg_attribute JOIN ours ON oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attnum > 0 AND NOT attisdropped""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, contype, convalidated, pg_get_constraintdef(c.oid)
        FROM pg_constraint c JOIN ours ON ours.oid = conrelid""",
    "indexes": """
        SELECT indrelid::regclass::text, indisvalid, pg_get_indexdef(indexrelid)
        FROM pg_index JOIN ours ON oid = indrelid""",
    "triggers": """
        SELECT tgrelid::regclass::text, tgname FROM pg_trigger t JOIN ours ON ours.oid = tgrelid
        WHERE NOT tgisinternal""",
}


@pytest.fixture
async def empty_engine(empty_database_url: URL) -> Any:
    engine = create_async_engine(empty_database_url)
    yield engine
    await engine.dispose()


async def read_catalog(engine: AsyncEngine) -> dict[str, set[tuple[Any, ...]]]:
    async with engine.connect() as connection:
        await connection.execute(text(OURS))
        return {
            kind: {tuple(map(str, row)) for row in await connection.execute(text(sql))}
            for kind, sql in CATALOG.items()
        }


async def fetch_scalar(engine: AsyncEngine, sql: str) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(text(sql))).scalar()


async def count_relations(engine: AsyncEngine) -> int:
    """Return the number of tables, sequences and other relations, without those of Alembic."""
    count: int = await fetch_scalar(
        engine,
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relname NOT LIKE 'alembic_version%'",
    )
    return count


async def test_upgrade_after_a_downgrade_builds_the_same_schema(empty_engine: AsyncEngine) -> None:
    await migrate(empty_engine)
    first = await read_catalog(empty_engine)
    await migrate(empty_engine, "base")
    assert await count_relations(empty_engine) == 0
    await migrate(empty_engine)
    assert await read_catalog(empty_engine) == first
    await require_current_schema(empty_engine)


async def test_downgrade_drops_the_partitions_of_the_heartbeat_log(database: Database) -> None:
    await migrate(database.engine, "base")
    assert await count_relations(database.engine) == 0


async def test_migrations_build_the_declared_tables(
    database: Database, empty_engine: AsyncEngine
) -> None:
    async with empty_engine.begin() as connection:
        await connection.run_sync(Table.metadata.create_all)
    migrated, declared = await read_catalog(database.engine), await read_catalog(empty_engine)
    assert migrated["tables"]
    for kind, rows in migrated.items():
        assert rows == declared[kind], kind


def _compare_metadata(connection: sa.Connection) -> list[Any]:
    def is_compared(name: str | None, kind: str, _: object) -> bool:
        return kind != "table" or name in Table.metadata.tables

    options = {"compare_type": True, "compare_server_default": True, "include_name": is_compared}
    context = MigrationContext.configure(connection, opts=options)
    return list(compare_metadata(context, Table.metadata))


async def test_alembic_finds_no_difference(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(_compare_metadata) == []


async def test_concurrent_migrations_succeed_and_apply_once(empty_database_url: URL) -> None:
    engines = [create_async_engine(empty_database_url) for _ in range(4)]
    await asyncio.gather(*(migrate(engine) for engine in engines))
    assert await fetch_scalar(engines[0], "SELECT count(*) FROM nodes") == 2
    assert await fetch_scalar(engines[0], "SELECT array_agg(version_num) FROM alembic_version") == [
        "0009"
    ]
    for engine in engines:
        await require_current_schema(engine)
        await engine.dispose()


async def test_migration_releases_its_lock(empty_engine: AsyncEngine) -> None:
    await migrate(empty_engine)

    async def is_unlocked() -> bool:
        return not await fetch_scalar(
            empty_engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        )

    await wait_until(is_unlocked)


async def test_database_without_a_schema_is_rejected_in_one_line(empty_engine: AsyncEngine) -> None:
    with pytest.raises(SchemaMismatch) as rejection:
        await require_current_schema(empty_engine)
    assert str(rejection.value) == (
        "the database is at schema none, this registry needs 0009: run `node-registry migrate`"
    )


async def test_database_with_an_older_schema_is_rejected(database: Database) -> None:
    await migrate(database.engine, "base")
    with pytest.raises(SchemaMismatch, match="run `node-registry migrate`") as rejection:
        await require_current_schema(database.engine)
    assert not rejection.value.ahead


async def test_database_with_a_newer_schema_is_rejected_and_left_alone(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for operation in (require_current_schema(database.engine), migrate(database.engine)):
        with pytest.raises(SchemaMismatch) as rejection:
            await operation
        assert str(rejection.value) == (
            "the database is at schema 9999, this registry needs 0009:"
            " start the version of the registry that made it, or a newer one"
        )
    assert await fetch_scalar(database.engine, "SELECT version_num FROM alembic_version") == "9999"


async def test_migrations_run_under_both_timeouts(empty_engine: AsyncEngine) -> None:
    timeouts = set()

    @event.listens_for(empty_engine.sync_engine, "before_cursor_execute")
    def read_timeouts(connection: sa.Connection, _: object, statement: str, *__: object) -> None:
        if statement.lstrip().startswith("CREATE TABLE"):
            values = [
                connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("lock_timeout", "statement_timeout")
            ]
            timeouts.add(tuple(values))

    await migrate(empty_engine)
    assert timeouts == {("5s", "10min")}


async def test_lock_timeout_fails_the_migration_and_changes_nothing(
    database: Database,
) -> None:
    before = await read_catalog(database.engine)
    async with database.engine.connect() as reader:
        await reader.execute(text("LOCK TABLE nodes, audit_log, tokens IN SHARE MODE"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await migrate(database.engine, "base", lock_timeout_seconds=0.1)
    assert await read_catalog(database.engine) == before
    await require_current_schema(database.engine)


async def test_schema_contains_the_two_seeded_nodes(database: Database) -> None:
    select_nodes = """
        SELECT node_id, node_name, node_role, node_type, host(ip_address), host(local_ip), hostname,
               status, status_reason, last_heartbeat
        FROM nodes ORDER BY node_id"""
    assert await fetch_rows(database, select_nodes) == [
        (
            "node-1-hetzner-gex44",
            "Hetzner GEX44 Production",
            "production",
            "router",
            "144.76.224.179",
            None,
            "gateway.daarion.city",
            "offline",
            "seeded",
            None,
        ),
        (
            "node-2-macbook-m4max",
            "MacBook Pro M4 Max",
            "development",
            "router",
            None,
            "192.168.1.244",
            "MacBook-Pro.local",
            "offline",
            "seeded",
            None,
        ),
    ]
    select_changes = """
        SELECT revision, n.node_id, previous_status, c.status, reason, actor
        FROM status_changes c JOIN nodes n ON n.id = c.node_id ORDER BY revision"""
    assert await fetch_rows(database, select_changes) == [
        (1, "node-1-hetzner-gex44", None, "offline", "seeded", "system/registry"),
        (2, "node-2-macbook-m4max", None, "offline", "seeded", "system/registry"),
    ]
    assert await fetch_rows(database, "SELECT revision FROM registry_state") == [(2,)]


async def test_documented_sql_of_operators_runs_unchanged(database: Database) -> None:
    profile = ProfileContent("llama", ProfileType.LLM, {"context": 8192})
    await register(database, "node-3", name="Third", profiles=[profile])
    await beat(database, "node-3")
    rows = await fetch_rows(
        database, "SELECT node_id, node_name, status, last_heartbeat FROM nodes;"
    )
    assert [row[:3] for row in rows if row[3] is not None] == [("node-3", "Third", "online")]
    assert await fetch_rows(
        database,
        "SELECT n.node_name, p.profile_name, p.profile_type, p.enabled FROM nodes n"
        " JOIN node_profiles p ON n.id = p.node_id;",
    ) == [("Third", "llama", "llm", True)]


async def test_registry_state_has_exactly_one_row(database: Database) -> None:
    for value in (True, False):
        with pytest.raises(DBAPIError, match="registry_state"):
            await fetch_rows(
                database, "INSERT INTO registry_state (id) VALUES (:value)", value=value
            )
