"""The commands install and uninstall, for a systemd unit or a launchd job that runs the agent.

They only write and remove files, and print the commands to run next.
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
from agent.terminal import echo

# The system unit hides these from the agent.
HIDDEN_FOLDERS = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  # none is written to


def add_service_options(command: Command) -> Command:
    for option in (
        click.option("--dry-run", is_flag=True, help="Print what would be done without doing it."),
        click.option(
            "--root",
            type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
            default=Path("/"),
            help="Root directory of an image to install into.",
        ),
        click.option("--run-as", help="User of a launchd system daemon [the user of sudo]."),
        click.option(
            "--scope",
            type=click.Choice(["system", "user"]),
            help="Service of the system or of this user [root: system, others: user].",
        ),
        click.option(
            "--manager",
            type=click.Choice(["systemd", "launchd"]),
            help="Service manager [launchd on macOS, else systemd].",
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
    """Write the service files that keep `node-agent run` running, with the given settings.

    Settings that are not given stay as installed before, or as given to bootstrap.
    NODE_AGENT_TOKEN is written to a file that only its owner may read.
    """
    with one_line_errors():
        layout = choose_layout(manager, scope, run_as, root)
        saved = {
            **read_bootstrap_settings(layout.resolve(layout.state_dir)),
            **layout.read_installed_settings(),
        }
        settings = load_settings(options, saved, source=str(layout.resolve(layout.settings_path)))
        if settings.state_dir not in {None, layout.state_dir}:
            raise BadSettingError(
                "--state-dir", f"this service keeps its node id in {layout.state_dir}"
            )
        if layout.is_system and layout.manager == "systemd" and root == Path("/"):
            check_visibility(settings)
        changed = [file for file in layout.build_files(settings) if not file.is_current]
        for file in changed:
            if dry_run:
                echo(f"--- {file.path} ({file.mode:04o})\n{_mask_token(file.text, settings)}")
            else:
                file.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                write_atomically(file.path, file.text, mode=file.mode)
                echo(f"{file.path} was written.")
        if not changed:
            echo(f"{layout.resolve(layout.unit_path)} is up to date.")
        print_commands("Now run:", layout.list_start_commands())


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
    """Remove the files that install wrote. The node id and the node token stay."""
    with one_line_errors():
        layout = choose_layout(manager, scope, run_as, root)
        files = {layout.unit_path, layout.enabled_link, layout.settings_path, layout.sysusers_path}
        paths = map(layout.resolve, sorted(filter(None, files)))
        existing = [path for path in paths if os.path.lexists(path)]
        for path in existing:
            if not dry_run:
                path.unlink()
            echo(f"{path} {'would be' if dry_run else 'was'} removed.")
        if not existing:
            echo(f"{layout.resolve(layout.unit_path)} does not exist.")
        print_commands("Now run:", layout.list_stop_commands())


def print_commands(heading: str, commands: list[str]) -> None:
    echo("\n  ".join([heading, *commands]))


def check_visibility(settings: AgentSettings) -> None:
    """Check that the system unit does not hide the agent's files and programs from it.

    Raises: BadSettingError: a path is hidden.
    """
    files = {name: path for name, path in settings.collect_tls_files().items() if path}
    programs = {
        "node-agent itself": Path(find_agent_command()[0]),
        "the Python of node-agent": Path(sys.base_prefix),
    }
    for name, path in {**files, **programs}.items():
        if any(path.is_relative_to(folder) for folder in HIDDEN_FOLDERS):
            option = name if " " in name else f"--{name.replace('_', '-')}"
            raise BadSettingError(
                option,
                f"a system service cannot read {path}: move it, e.g. below /opt, or use"
                " --scope user",
            )


def _mask_token(text: str, settings: AgentSettings) -> str:
    return text.replace(settings.token.get_secret_value(), "***") if settings.token else text
