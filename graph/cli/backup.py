"""The commands `node-registry backup` and `node-registry restore`."""

import asyncio
from pathlib import Path

import click

from db.ops.backup import Manifest, create_backup
from db.ops.backup_seal import BackupKey
from db.ops.restore import check_backup, restore_backup
from graph.cli.common import load_command_settings
from graph.core.open_database import open_shared_database_url
from graph.core.settings import Settings
from graph.core.terminal import echo

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command("backup")
@click.argument("file", type=_PATH)
def backup_command(file: Path) -> None:
    """Write the whole database as it is now to FILE; the registry may keep running.

    An existing FILE is replaced once the new backup is complete. Only its owner can read FILE,
    because it contains the hashes of all API keys. It is sealed by the key in
    NODE_REGISTRY_BACKUP_KEY_FILE, which the first backup creates. `pg_restore` reads FILE too.
    """
    _print_summary(asyncio.run(_backup(load_command_settings(), file)), f"{file} has")


@click.command("restore")
@click.argument("file", type=_PATH)
@click.option("--replace", is_flag=True, help="Overwrite everything in the database.")
@click.option(
    "--check", "only_check", is_flag=True, help="Only check that FILE is sealed and complete."
)
@click.option(
    "--trust-unsealed",
    is_flag=True,
    help="Accept a FILE that the installation's key does not seal. Restoring it runs whatever its"
    " maker put into it, as the database's owner.",
)
def restore_command(file: Path, *, replace: bool, only_check: bool, trust_unsealed: bool) -> None:
    """Restore the database to what it was when FILE was written; on an error, change nothing.

    FILE must be sealed by the key in NODE_REGISTRY_BACKUP_KEY_FILE. No registry may be using the
    database. It must be empty, or created by `migrate` or `init-database` and unused, unless
    --replace is given. Restore as its owner, as for `migrate`.
    """
    settings = load_command_settings()
    if only_check:
        check = check_backup(file, _get_key(settings), trust_unsealed=trust_unsealed)
        _print_summary(asyncio.run(check), f"{file} is complete and has")
    else:
        restore = _restore(settings, file, replace=replace, trust_unsealed=trust_unsealed)
        _print_summary(asyncio.run(restore), "The database has")


async def _backup(settings: Settings, file: Path) -> Manifest:
    async with open_shared_database_url(settings) as url:
        return await create_backup(url, file, _get_key(settings))


async def _restore(
    settings: Settings, file: Path, *, replace: bool, trust_unsealed: bool
) -> Manifest:
    async with open_shared_database_url(settings) as url:
        return await restore_backup(
            url, file, _get_key(settings), replace=replace, trust_unsealed=trust_unsealed
        )


def _get_key(settings: Settings) -> BackupKey:
    return BackupKey(settings.backup_key_file or settings.data_dir / "backup.key")


def _print_summary(manifest: Manifest, subject: str) -> None:
    echo(
        f"{subject} {manifest.rows['nodes']:,} nodes and {manifest.rows['heartbeat_log']:,} "
        f"heartbeats at revision {manifest.revision}, schema {manifest.schema_version}, as of"
        f" {manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC."
    )
