"""The command `node-registry`."""

import asyncio
import sys
from typing import NoReturn

import click
import uvloop
from sqlalchemy.exc import DBAPIError

from db.data_folder import DataFolderInUse
from db.database import Database
from db.errors import EmbeddedServerFailed, RegistryError
from db.migrate import SchemaMismatch, migrate
from graph import logs
from graph.app import database_url
from graph.schema import schema
from graph.server import serve
from graph.settings import ConfigurationError, Settings, load
from graph.version import SERVICE, VERSION

_EXPECTED = (
    ConfigurationError,
    SchemaMismatch,
    DataFolderInUse,
    EmbeddedServerFailed,
    RegistryError,
    OSError,
)


@click.group()
@click.version_option(VERSION, prog_name=SERVICE)
def commands() -> None:
    """The node registry. It is configured by environment variables, NODE_REGISTRY_..."""


@commands.command("serve")
def serve_command() -> None:
    """Serve the registry until it is told to stop."""
    settings = load()
    logs.configure(settings.env, settings.log_level)
    uvloop.run(serve(settings))


@commands.command("migrate")
def migrate_command() -> None:
    """Bring the database to the schema that this version needs."""
    settings = load()
    logs.configure(settings.env, settings.log_level)
    asyncio.run(_migrate(settings))
    click.echo("The database is at this version's schema.")


@commands.command()
def export_schema() -> None:
    """Print the GraphQL schema."""
    click.echo(schema.as_str())


async def _migrate(settings: Settings) -> None:
    async with database_url(settings) as url:
        database = Database(url)
        try:
            await database.ping()
            await migrate(database.engine)
        finally:
            await database.close()


def main() -> None:
    """Failures that an operator can mend end in one line and exit status 1."""
    try:
        commands()
    except _EXPECTED as error:
        _fail(str(error))
    except DBAPIError as error:
        _fail(f"the database refuses: {str(error.orig).splitlines()[0]}")


def _fail(message: str) -> NoReturn:
    click.echo(f"{SERVICE}: {message}", err=True)
    sys.exit(1)
