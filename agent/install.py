"""The commands install and uninstall: the unit by which systemd or launchd keeps the agent running.

They write and remove files. What has to be run then they say.
"""

import os
import sys
from pathlib import Path
from typing import Literal

import click

from agent.console import Command, add_node_options, one_line_errors
from agent.identity import read_bootstrap_settings, write_atomically
from agent.service_layout import choose_layout, find_agent_command
from agent.settings import AgentSettings, BadSettingError, load_settings

# The unit of the system shows the agent nothing of these.
HIDDEN_FOLDERS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  # none is written to


def add_service_options(command: Command) -> Command:
    for option in (
        click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing."),
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
            default=Path("/"),
            help="Of an image that is being made: where its / is.",
        ),
        click.option("--run-as", help="Whose rights a daemon of launchd has [who called sudo]."),
        click.option(
            "--scope",
            type=click.Choice(["system", "user"]),
            help="A service of the system, or of this user [root: system, others: user].",
        ),
        click.option(
            "--manager",
            type=click.Choice(["systemd", "launchd"]),
            help="[launchd on a Mac, else systemd]",
        ),
    ):
        command = option(command)
    return command


@click.command()
@add_node_options
@add_service_options
def install(
    *,
    manager: Literal["systemd", "launchd"] | None,
    scope: Literal["system", "user"] | None,
    run_as: str | None,
    root: Path,
    dry_run: bool,
    **options: str | None,
) -> None:
    """Write the unit that keeps `node-agent run` running, with the settings given.

    Settings that are not given stay as they were installed, or as bootstrap was told.
    NODE_AGENT_TOKEN is kept in a file that nobody else may read.
    """
    with one_line_errors():
        layout = choose_layout(manager, scope, run_as, root)
        saved = {
            **read_bootstrap_settings(layout.resolve(layout.state_dir)),
            **layout.read_installed_settings(),
        }
        settings = load_settings(options, saved, source=str(layout.resolve(layout.settings_path)))
        if settings.state_dir not in {None, layout.state_dir}:
            raise BadSettingError("--state-dir", f"this service keeps its id in {layout.state_dir}")
        if layout.is_system and layout.manager == "systemd" and root == Path("/"):
            check_visibility(settings)
        changed = [file for file in layout.build_files(settings) if not file.is_current]
        for file in changed:
            if dry_run:
                click.echo(f"--- {file.path} ({file.mode:04o})\n{_mask_token(file.text, settings)}")
            else:
                file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                write_atomically(file.path, file.text, mode=file.mode)
                click.echo(f"{file.path} was written.")
        if not changed:
            click.echo(f"{layout.resolve(layout.unit_path)} is as it should be.")
        print_commands("Run then:", layout.list_start_commands())


@click.command()
@add_service_options
def uninstall(
    *,
    manager: Literal["systemd", "launchd"] | None,
    scope: Literal["system", "user"] | None,
    run_as: str | None,
    root: Path,
    dry_run: bool,
) -> None:
    """Remove what install has written. The node id and the node's key stay."""
    with one_line_errors():
        layout = choose_layout(manager, scope, run_as, root)
        files = {layout.unit_path, layout.enabled_link, layout.settings_path, layout.sysusers_path}
        paths = map(layout.resolve, sorted(filter(None, files)))
        existing = [path for path in paths if os.path.lexists(path)]
        for path in existing:
            if not dry_run:
                path.unlink()
            click.echo(f"{path} {'would be' if dry_run else 'was'} removed.")
        if not existing:
            click.echo(f"{layout.resolve(layout.unit_path)} is not there.")
        print_commands("Run then:", layout.list_stop_commands())


def print_commands(heading: str, commands: list[str]) -> None:
    click.echo("\n  ".join([heading, *commands]))


def check_visibility(settings: AgentSettings) -> None:
    """Raises BadSettingError for what the unit of the system hides from the agent."""
    files = {name: path for name, path in settings.tls_files().items() if path}
    programs = {
        "node-agent itself": Path(find_agent_command()[0]),
        "the Python of node-agent": Path(sys.base_prefix),
    }
    for name, path in {**files, **programs}.items():
        if any(path.is_relative_to(folder) for folder in HIDDEN_FOLDERS):
            option = name if " " in name else f"--{name.replace('_', '-')}"
            raise BadSettingError(
                option,
                f"a service of the system does not see {path}: put it elsewhere, e.g. below /opt,"
                " or use --scope user",
            )


def _mask_token(text: str, settings: AgentSettings) -> str:
    return text.replace(settings.token.get_secret_value(), "***") if settings.token else text
