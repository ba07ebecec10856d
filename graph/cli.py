"""The command `node-registry`."""

import asyncio
import sys

import click
import uvloop

from db.database import Database
from db.migrate import migrate
from graph import logs
from graph.app import database_url
from graph.failures import MENDABLE, in_one_line
from graph.schema import schema
from graph.server import serve
from graph.settings import Settings, load
from graph.version import SERVICE, VERSION
from graph.workers import serve_by_workers


@click.group()
@click.version_option(VERSION, prog_name=SERVICE)
def commands() -> None:
    """The node registry. It is configured by environment variables, NODE_REGISTRY_..."""


@commands.command("serve")
@click.option("--workers", type=int, help="Processes that share the address; 1 by default.")
def serve_command(workers: int | None) -> None:
    """Serve the registry until it is told to stop."""
    settings = load(workers=workers)
    logs.configure(settings.env, settings.log_level)
    uvloop.run(serve(settings) if settings.workers == 1 else serve_by_workers(settings))


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
    except MENDABLE as error:
        click.echo(f"{SERVICE}: {in_one_line(error)}", err=True)
        sys.exit(1)
