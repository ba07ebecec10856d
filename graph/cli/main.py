"""The command `node-registry`.

Only the commands that need GraphQL and the server import them, so that the others start sooner.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import click
import uvloop

from db.core.database import Database
from db.core.enums import ProfileType
from db.core.migrate import migrate
from graph.api.profile_schema import CONFIG_MODELS
from graph.cli.backup import backup_command, restore_command
from graph.cli.common import identify_operator, load_command_settings
from graph.cli.doctor import doctor
from graph.cli.init_database import init_database
from graph.cli.tokens import token
from graph.core.open_database import open_database_url, open_shared_database
from graph.core.settings import Settings, load_settings
from graph.core.terminal import echo
from graph.core.version import SERVICE_NAME, VERSION
from graph.server.exit_errors import EXIT_ERRORS, format_exit_error
from graph.server.file_limits import raise_open_file_limit
from graph.server.listener import require_safe_access
from graph.server.worker_pool import serve_with_workers
from graph.telemetry import logs

if TYPE_CHECKING:
    from graph.cli.profile_yaml import Difference


@click.group()
@click.version_option(VERSION, prog_name=SERVICE_NAME)
def commands() -> None:
    """Run the node registry, configured by environment variables NODE_REGISTRY_..."""


commands.add_command(token)


@commands.command("serve")
@click.option(
    "--workers", type=int, help="Number of processes that share the address; by default 1."
)
def serve_command(workers: int | None) -> None:
    """Serve the registry until it is stopped by SIGINT or SIGTERM."""
    settings = load_settings(workers=workers)
    require_safe_access(settings)
    logs.configure_logging(settings.env, settings.log_level)
    raise_open_file_limit(settings.max_connections)
    if settings.workers == 1:
        from graph.server.uvicorn_server import serve

        uvloop.run(serve(settings))
    else:
        uvloop.run(serve_with_workers(settings))


@commands.command("migrate")
def migrate_command() -> None:
    """Migrate the database to the schema of this version."""
    settings = load_settings()
    logs.configure_logging(settings.env, settings.log_level)
    asyncio.run(_migrate(settings))
    echo("The database is at this version's schema.")


commands.add_command(init_database)
commands.add_command(doctor)
commands.add_command(backup_command)
commands.add_command(restore_command)


@commands.command()
def export_schema() -> None:
    """Print the GraphQL schema."""
    from graph.api.schema import schema

    echo(schema.as_str())


@commands.group()
def profile() -> None:
    """Export and import the profiles of roles and types as YAML."""


@profile.command("export")
def export_command() -> None:
    """Print all role profiles."""
    echo(asyncio.run(_export_profiles(load_command_settings())), nl=False)


@profile.command("import")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option("--prune", is_flag=True, help="Delete role profiles that FILE does not contain.")
@click.option("--dry-run", is_flag=True, help="Print the changes without making them.")
def import_command(file: TextIO, *, prune: bool, dry_run: bool) -> None:
    """Create or update the role profiles in FILE; - is standard input."""
    difference = asyncio.run(
        _import_profiles(load_command_settings(), file.read(), prune=prune, dry_run=dry_run)
    )
    echo(difference.diff, nl=False)
    done = "would be" if dry_run else "were"
    echo(f"{difference.written} {done} written, {difference.deleted} {done} deleted.")


@profile.command("schema")
@click.argument("profile_type", type=click.Choice([kind.name for kind in ProfileType]))
def schema_command(profile_type: str) -> None:
    """Print the JSON Schema of a profile's config."""
    config = CONFIG_MODELS[ProfileType[profile_type]]
    echo(json.dumps(config.model_json_schema(), indent=2))


async def _export_profiles(settings: Settings) -> str:
    from graph.cli.profile_yaml import export_profiles

    async with open_shared_database(settings) as database, database.read() as session:
        return await export_profiles(session)


async def _import_profiles(
    settings: Settings, text: str, *, prune: bool, dry_run: bool
) -> "Difference":
    from graph.cli.profile_yaml import import_profiles

    async with open_shared_database(settings) as database, database.write() as session:
        difference = await import_profiles(session, text, prune=prune, caller=identify_operator())
        if dry_run:
            await session.rollback()
        return difference


async def _migrate(settings: Settings) -> None:
    async with open_database_url(settings) as url:
        database = Database(url)
        try:
            await database.ping()
            await migrate(database.engine)
        finally:
            await database.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; on an error of EXIT_ERRORS print one line and exit with status 1."""
    try:
        commands(arguments)
    except EXIT_ERRORS as error:
        echo(f"{SERVICE_NAME}: {format_exit_error(error)}", err=True)
        sys.exit(1)
