"""`node-registry init-database`, run as an administrator; the access it prints is used."""

import shlex
import stat
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.commands import run, run_process
from tests.support.paths import read_files


async def run_init_database(postgres: URL, *arguments: str) -> tuple[int, str, str]:
    address = postgres.render_as_string(hide_password=False)
    return await run("init-database", *arguments, NODE_REGISTRY_ADMINISTRATOR_URL=address)


def parse_accesses(output: str) -> list[dict[str, str]]:
    """Return the environment of each role in the output, read as a shell reads it."""
    accesses: list[dict[str, str]] = []
    for line in output.splitlines():
        if line.startswith("# For "):
            accesses.append({})
        elif line.startswith("NODE_REGISTRY_DB_"):
            [assignment] = shlex.split(line)
            variable, _, value = assignment.partition("=")
            accesses[-1][variable] = value
    return accesses


def read_private_files(folder: Path) -> dict[str, str]:
    """Return the contents of the files by name, all of which must be private to their owner."""
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    return read_files(folder)


async def count_roles(postgres: URL, name: str) -> int:
    engine = create_async_engine(postgres)
    async with engine.connect() as connection:
        count = await connection.scalar(
            text("SELECT count(*) FROM pg_roles WHERE rolname IN (:service, :owner)"),
            {"service": name, "owner": f"{name}_owner"},
        )
    await engine.dispose()
    assert isinstance(count, int)
    return count


async def test_init_database_prints_the_access_of_each_role_once(
    postgres: URL, service_name: str
) -> None:
    status, output, errors = await run_init_database(postgres, "--database", service_name)
    assert status == 0, errors
    service, owner = parse_accesses(output)
    assert service.keys() == owner.keys()
    assert {variable.removeprefix("NODE_REGISTRY_DB_") for variable in service} == {
        "HOST",
        "PORT",
        "NAME",
        "USER",
        "PASSWORD",
    }
    assert (service["NODE_REGISTRY_DB_NAME"], service["NODE_REGISTRY_DB_USER"]) == (
        service_name,
        service_name,
    )
    assert owner["NODE_REGISTRY_DB_USER"] == f"{service_name}_owner"
    assert "was created" in output
    status, output, _ = await run_init_database(postgres, "--database", service_name)
    assert status == 0
    assert parse_accesses(output) == []
    assert output.count("exists already") == 3
    for access, command in ((owner, ["migrate"]), (service, ["token", "list"])):
        status, _, errors = await run_process(*command, **access)
        assert status == 0, errors


async def test_init_database_writes_private_access_files(
    postgres: URL, service_name: str, tmp_path: Path
) -> None:
    arguments = ("--database", service_name, "--write", str(tmp_path))
    status, output, errors = await run_init_database(postgres, *arguments)
    assert status == 0, errors
    first = read_private_files(tmp_path)
    assert set(first) == {"service.env", "migration.env"}
    for content in first.values():
        [access] = parse_accesses(content)
        assert access["NODE_REGISTRY_DB_PASSWORD"] not in output + errors
    await run_init_database(postgres, *arguments)
    assert read_private_files(tmp_path) == first
    status, *_ = await run_init_database(postgres, *arguments, "--new-passwords")
    assert status == 0
    second = read_private_files(tmp_path)
    assert second.keys() == first.keys()
    assert not {*second.values()} & {*first.values()}


async def test_init_database_writes_only_the_service_file_with_access_from_a_settings_file(
    postgres: URL, service_name: str, tmp_path: Path
) -> None:
    administrator, access = tmp_path / "administrator.env", tmp_path / "access"
    access.mkdir()
    address = postgres.render_as_string(hide_password=False)
    administrator.write_text(f"NODE_REGISTRY_ADMINISTRATOR_URL={address}\n")
    arguments = ("--database", service_name, "--write", str(access), "--service-only")
    environment = {"NODE_REGISTRY_SETTINGS_FILE": str(administrator)}
    for _ in range(2):
        status, _, errors = await run("init-database", *arguments, **environment)
        assert status == 0, errors
        assert set(read_private_files(access)) == {"service.env"}
    status, _, errors = await run(
        "token", "list", NODE_REGISTRY_SETTINGS_FILE=str(access / "service.env")
    )
    assert status == 0, errors


@pytest.mark.parametrize("file_name", ["service.env", "migration.env"])
async def test_init_database_does_not_replace_an_existing_file(
    postgres: URL, service_name: str, tmp_path: Path, file_name: str
) -> None:
    (tmp_path / file_name).write_text("somebody else's")
    status, _, errors = await run_init_database(
        postgres, "--database", service_name, "--write", str(tmp_path)
    )
    assert status == 1
    assert file_name in errors
    assert len(errors.splitlines()) == 1
    assert read_files(tmp_path) == {file_name: "somebody else's"}
    assert await count_roles(postgres, service_name) == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url, but a secret", "is not a URL"),
        ("postgresql://root:secret@127.0.0.1:1/postgres", "Connect call failed"),
    ],
)
async def test_init_database_reports_a_bad_url_without_its_password(url: str, message: str) -> None:
    status, output, errors = await run("init-database", NODE_REGISTRY_ADMINISTRATOR_URL=url)
    assert status != 0
    assert message in errors
    assert "secret" not in output + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("name", ["", "x" * 64, "a\nb"])
async def test_init_database_rejects_a_name_that_postgresql_would_change(
    postgres: URL, name: str
) -> None:
    status, _, errors = await run_init_database(postgres, "--database", name)
    assert status == 2
    assert "--database" in errors


async def test_init_database_reports_a_wrong_owner_in_one_line(
    postgres: URL, service_name: str
) -> None:
    status, _, errors = await run_init_database(
        postgres,
        "--database",
        "postgres",
        "--service",
        service_name,
        "--owner",
        f"{service_name}_owner",
    )
    assert status == 1
    assert errors == (
        "node-registry: the database 'postgres' belongs to the role 'postgres': name it as the"
        " owner\n"
    )
