"""`node-registry init-database`, run as an administrator does; what it prints is good for use."""

import shlex
import stat
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.commands import run, run_process
from tests.support.paths import read_files


async def init(postgres: URL, *arguments: str) -> tuple[int, str, str]:
    address = postgres.render_as_string(hide_password=False)
    return await run("init-database", *arguments, NODE_REGISTRY_ADMINISTRATOR_URL=address)


def accesses(output: str) -> list[dict[str, str]]:
    """Each a role's environment, as a shell reads it."""
    found: list[dict[str, str]] = []
    for line in output.splitlines():
        if line.startswith("# For "):
            found.append({})
        elif line.startswith("NODE_REGISTRY_DB_"):
            [assignment] = shlex.split(line)
            variable, _, value = assignment.partition("=")
            found[-1][variable] = value
    return found


def private_files(folder: Path) -> dict[str, str]:
    """By name; each must be for nobody but its owner."""
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    return read_files(folder)


async def roles_of(postgres: URL, name: str) -> int:
    engine = create_async_engine(postgres)
    async with engine.connect() as connection:
        count = await connection.scalar(
            text("SELECT count(*) FROM pg_roles WHERE rolname IN (:service, :owner)"),
            {"service": name, "owner": f"{name}_owner"},
        )
    await engine.dispose()
    assert isinstance(count, int)
    return count


async def test_it_prints_the_access_of_each_role_once(postgres: URL, service_name: str) -> None:
    status, output, errors = await init(postgres, "--database", service_name)
    assert status == 0, errors
    service, owner = accesses(output)
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
    status, output, _ = await init(postgres, "--database", service_name)
    assert status == 0
    assert accesses(output) == []
    assert output.count("exists already") == 3
    for access, command in ((owner, ["migrate"]), (service, ["token", "list"])):
        status, _, errors = await run_process(*command, **access)
        assert status == 0, errors


async def test_it_writes_the_accesses_for_nobody_but_their_owner(
    postgres: URL, service_name: str, tmp_path: Path
) -> None:
    arguments = ("--database", service_name, "--write", str(tmp_path))
    status, output, errors = await init(postgres, *arguments)
    assert status == 0, errors
    first = private_files(tmp_path)
    assert set(first) == {"service.env", "migration.env"}
    for content in first.values():
        [access] = accesses(content)
        assert access["NODE_REGISTRY_DB_PASSWORD"] not in output + errors
    await init(postgres, *arguments)
    assert private_files(tmp_path) == first
    status, *_ = await init(postgres, *arguments, "--new-passwords")
    assert status == 0
    second = private_files(tmp_path)
    assert second.keys() == first.keys()
    assert not {*second.values()} & {*first.values()}


async def test_it_keeps_the_service_alone_by_an_access_that_no_list_of_processes_has(
    postgres: URL, service_name: str, tmp_path: Path
) -> None:
    administrator, access = tmp_path / "administrator.env", tmp_path / "access"
    access.mkdir()
    address = postgres.render_as_string(hide_password=False)
    administrator.write_text(f"NODE_REGISTRY_ADMINISTRATOR_URL={address}\n")
    arguments = ("--database", service_name, "--write", str(access), "--service-only")
    by_file = {"NODE_REGISTRY_SETTINGS_FILE": str(administrator)}
    for _ in range(2):
        status, _, errors = await run("init-database", *arguments, **by_file)
        assert status == 0, errors
        assert set(private_files(access)) == {"service.env"}
    status, _, errors = await run(
        "token", "list", NODE_REGISTRY_SETTINGS_FILE=str(access / "service.env")
    )
    assert status == 0, errors


@pytest.mark.parametrize("taken", ["service.env", "migration.env"])
async def test_it_replaces_no_file_unless_passwords_are_renewed(
    postgres: URL, service_name: str, tmp_path: Path, taken: str
) -> None:
    (tmp_path / taken).write_text("somebody else's")
    status, _, errors = await init(postgres, "--database", service_name, "--write", str(tmp_path))
    assert status == 1
    assert taken in errors
    assert len(errors.splitlines()) == 1
    assert read_files(tmp_path) == {taken: "somebody else's"}
    assert await roles_of(postgres, service_name) == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url, but a secret", "is not a URL"),
        ("postgresql://root:secret@127.0.0.1:1/postgres", "Connect call failed"),
    ],
)
async def test_a_bad_address_is_said_without_its_password(url: str, said: str) -> None:
    status, output, errors = await run("init-database", NODE_REGISTRY_ADMINISTRATOR_URL=url)
    assert status != 0
    assert said in errors
    assert "secret" not in output + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("bad", ["", "x" * 64, "a\nb"])
async def test_a_name_that_postgresql_would_change_is_refused(postgres: URL, bad: str) -> None:
    status, _, errors = await init(postgres, "--database", bad)
    assert status == 2
    assert "--database" in errors


async def test_what_is_not_as_it_has_to_be_is_told_in_one_line(
    postgres: URL, service_name: str
) -> None:
    status, _, errors = await init(
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
