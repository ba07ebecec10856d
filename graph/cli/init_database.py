"""The command `node-registry init-database`."""

import asyncio
import shlex
from collections.abc import Mapping
from pathlib import Path

import click
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from db.ops.provision import ProvisionedNames, provision
from graph.core.settings import ENV_PREFIX, find_settings_file
from graph.core.terminal import echo

_MAX_NAME_BYTES = 63  # PostgreSQL truncates longer ones


def _check_name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (
        value.isprintable() and 1 <= len(value.encode()) <= _MAX_NAME_BYTES
    ):
        raise click.BadParameter(f"must have 1 to {_MAX_NAME_BYTES} bytes, all printable")
    return value


class _AdministratorSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore")

    administrator_url: str | None = None


def _parse_url(_: click.Context, __: click.Parameter, value: str | None) -> URL:
    value = value or _AdministratorSettings(_env_file=find_settings_file()).administrator_url
    if value is None:
        raise click.MissingParameter
    try:
        return make_url(value)
    except ArgumentError as error:
        raise click.BadParameter("is not a URL") from error  # not shown: it may have a password


@click.command()
@click.argument("administrator", callback=_parse_url, required=False)
@click.option("--database", default="node_registry", show_default=True, callback=_check_name)
@click.option(
    "--owner",
    help="The owner's role; by default the database's name and _owner.",
    callback=_check_name,
)
@click.option(
    "--service", help="The service's role; by default the database's name.", callback=_check_name
)
@click.option("--new-passwords", is_flag=True, help="Give both roles new passwords.")
@click.option("--service-only", is_flag=True, help="Do not keep the owner's password.")
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Write service.env and migration.env to this folder instead of printing their content.",
)
def init_database(
    administrator: URL,
    database: str,
    owner: str | None,
    service: str | None,
    *,
    new_passwords: bool,
    service_only: bool,
    folder: Path | None,
) -> None:
    """Create a database in which the service cannot alter tables or edit the audit trail.

    ADMINISTRATOR is the URL of a role that may create roles and databases, e.g.
    postgresql://postgres:secret@localhost/postgres. Other users can see the command line, so
    better put it into NODE_REGISTRY_ADMINISTRATOR_URL, or the file that
    NODE_REGISTRY_SETTINGS_FILE names.

    Repeated, the command creates only what is missing and migrates an older schema to this
    version. If you run it for each version, you do not need the owner's password.
    """
    names = ProvisionedNames(database, owner or f"{database}_owner", service or database)

    def save_passwords(passwords: Mapping[str, str]) -> None:
        files = {}
        for name, role, purpose in (
            ("service.env", names.service, "node-registry serve"),
            ("migration.env", names.owner, "node-registry migrate, and nothing else"),
        ):
            if service_only and role == names.owner:
                continue
            if role in passwords:
                connection = _format_environment(administrator, names, role, passwords[role])
                files[name] = f"# For {purpose}\n{connection}"
            else:
                echo(f"The role {role} exists already and keeps its password.")
        _write_files(files, folder, replace=new_passwords)

    was_created = asyncio.run(
        provision(administrator, names, new_passwords=new_passwords, store_passwords=save_passwords)
    )
    echo(
        f"The database {database} {'was created' if was_created else 'exists already'}, "
        "at this version's schema."
    )


def _format_environment(
    administrator: URL, names: ProvisionedNames, role: str, password: str
) -> str:
    connection = {
        "HOST": administrator.host or administrator.query.get("host") or "localhost",
        "PORT": administrator.port or administrator.query.get("port") or 5432,
        "NAME": names.database,
        "USER": role,
        "PASSWORD": password,
    }
    return "".join(
        f"NODE_REGISTRY_DB_{name}={shlex.quote(str(value))}\n" for name, value in connection.items()
    )


def _write_files(files: Mapping[str, str], folder: Path | None, *, replace: bool) -> None:
    """Write the files to the folder, readable by their owner only, or print them without one.

    Raises: FileExistsError: a file exists and `replace` is false; nothing was written.
    """
    if folder is None:
        for text in files.values():
            echo(text)
        return
    paths = {folder / name: text for name, text in files.items()}
    existing = [path for path in paths if path.exists()]
    if existing and not replace:
        raise FileExistsError(f"{existing[0]} exists already: --new-passwords replaces it")
    for path, text in paths.items():
        new = path.with_name(f"{path.name}.new")
        new.touch(0o600, exist_ok=False)
        new.write_text(text, encoding="utf-8")
        new.replace(path)
        echo(f"Wrote {path}.")
