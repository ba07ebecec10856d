"""The command `node-registry`, run as an operator runs it."""

import asyncio
import socket

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.commands import COMMAND, Run, make_environment, run, run_process
from tests.support.paths import ROOT
from tests.support.processes import FAST, run_program


async def test_export_schema_prints_schema_graphql() -> None:
    status, output, _ = await run_process("export-schema")
    assert status == 0
    assert output == (ROOT / "schema.graphql").read_text(encoding="utf-8")


async def test_migrate_creates_the_schema_and_can_be_repeated(empty_database_url: URL) -> None:
    for run_command in (run_process, run):
        status, output, _ = await run_command("migrate", **make_environment(empty_database_url))
        assert (status, output) == (0, "The database is at this version's schema.\n")


async def test_serve_rejects_a_database_with_an_older_schema(empty_database_url: URL) -> None:
    status, _, errors = await run_process("serve", **make_environment(empty_database_url))
    assert status == 1
    assert errors.strip().splitlines()[-1] == (
        "node-registry: the database is at schema none, this registry needs 0009:"
        " run `node-registry migrate`"
    )


async def test_serve_rejects_a_database_with_a_newer_schema(database_url: URL) -> None:
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    status, _, errors = await run_process("serve", **make_environment(database_url))
    assert status == 1
    assert "at schema 9999" in errors.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("run_command", "name", "value"),
    [
        (run, "NODE_REGISTRY_HTTP_PORT", "many"),
        (run, "NODE_REGISTRY_ENV", "staging"),
        (run, "NODE_REGISTRY_SWEEP_INTERVAL_SECONDS", "-1"),
        (run_process, "NODE_REGISTRY_DATABASE_URL", "not a url"),
    ],
)
async def test_serve_rejects_an_invalid_setting_in_one_line_that_names_it(
    run_command: Run, name: str, value: str
) -> None:
    status, output, errors = await run_command("serve", **{name: value})
    assert status == 1
    assert output == ""
    assert len(errors.strip().splitlines()) == 1
    assert name in errors


async def test_serve_reports_a_port_in_use_in_one_line(database_url: URL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = make_environment(database_url)
        environment["NODE_REGISTRY_HTTP_PORT"] = str(listener.getsockname()[1])
        status, _, errors = await run_process("serve", **environment)
    assert status == 1
    assert "ddress already in use" in errors.strip().splitlines()[-1]


async def test_serve_reports_an_unreachable_database_in_one_line() -> None:
    url = URL.create("postgresql", "nobody", host="127.0.0.1", port=1, database="nothing")
    status, _, errors = await run_process("serve", **make_environment(url))
    assert status == 1
    assert "cannot reach its database" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


async def test_migrate_reports_a_missing_database_in_one_line(postgres: URL) -> None:
    status, _, errors = await run("migrate", **make_environment(postgres.set(database="nothing")))
    assert status == 1
    assert 'database "nothing" does not exist' in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


async def test_a_registry_exits_and_names_the_background_task_that_died(
    database_url: URL,
) -> None:
    settings = FAST | make_environment(database_url)
    async with run_program(COMMAND, "serve", **settings) as registry:
        await registry.wait_for_line(r"GraphQL +(\S+)")
        engine = create_async_engine(database_url)
        async with engine.begin() as connection:
            await connection.execute(text("DROP TABLE registry_processes"))
        await engine.dispose()
        await registry.wait_for_line("background_task.died .*sweeper")
        await registry.wait_for_line(
            "node-registry: the background task 'sweeper' died; see the log for the cause"
        )
        async with asyncio.timeout(30):
            assert await registry.process.wait() == 1
