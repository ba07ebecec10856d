"""The commands `node-registry backup` and `node-registry restore`."""

import asyncio
from pathlib import Path

import click

from db.ops.backup import Manifest, create_backup
from db.ops.restore import check_backup, restore_backup
from graph.cli.common import load_command_settings
from graph.core.open_database import open_shared_database_url
from graph.core.settings import Settings

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command("backup")
@click.argument("file", type=_PATH)
def backup_command(file: Path) -> None:
    """Write the whole database to FILE, as it is at this moment; the registry may go on.

    FILE is replaced when all of the new one is there. It is for nobody but its owner: who has it
    has the hashes of all keys. `pg_restore` reads it too.
    """
    _print_summary(asyncio.run(_backup(load_command_settings(), file)), f"{file} has")


@click.command("restore")
@click.argument("file", type=_PATH)
@click.option("--replace", is_flag=True, help="Give up all that the database has.")
@click.option("--check", "only_check", is_flag=True, help="Only see that FILE is whole.")
def restore_command(file: Path, *, replace: bool, only_check: bool) -> None:
    """Make the database what it was when FILE was written: all of it, or nothing is changed.

    No registry may be at work on it. It has to be empty, or made by `migrate` or `init-database`
    and not used yet, unless --replace is given; restore as its owner, as you migrate.
    """
    if only_check:
        _print_summary(asyncio.run(check_backup(file)), f"{file} is whole, and has")
    else:
        _print_summary(
            asyncio.run(_restore(load_command_settings(), file, replace=replace)),
            "The database has",
        )


async def _backup(settings: Settings, file: Path) -> Manifest:
    async with open_shared_database_url(settings) as url:
        return await create_backup(url, file)


async def _restore(settings: Settings, file: Path, *, replace: bool) -> Manifest:
    async with open_shared_database_url(settings) as url:
        return await restore_backup(url, file, replace=replace)


def _print_summary(manifest: Manifest, subject: str) -> None:
    click.echo(
        f"{subject} {manifest.rows['nodes']:,} nodes and {manifest.rows['heartbeat_log']:,} "
        f"heartbeats at revision {manifest.revision}, schema {manifest.schema_version}, as of"
        f" {manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC."
    )
