"""The options that the agent's commands share, and their one-line errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from agent import identity
from agent.identity import StateError
from agent.settings import AgentSettings, BadSettingError, load_settings
from agent.terminal import escape

Command = TypeVar("Command", bound=Callable[..., None])


def add_connection_options(command: Command) -> Command:
    for option in (
        click.option("--registry-url", help="Address of the registry [http://127.0.0.1:9205]."),
        click.option(
            "--ca-file", help="CA certificates to trust for https, instead of the usual ones."
        ),
        click.option("--certificate", help="Client certificate that identifies the node."),
        click.option("--key", help="Private key of the certificate, if it is in another file."),
        click.option("--state-dir", help="Directory of the node id [/etc/dagi or ~/.config/dagi]."),
    ):
        command = option(command)
    return command


def add_node_options(command: Command) -> Command:
    for option in (
        click.option("--name", help="Display name of the node."),
        click.option(
            "--services",
            help="Addresses at which to look for models and Docker, separated by commas, or none"
            " [the usual addresses of Ollama, vLLM, LM Studio, llama.cpp and Docker].",
        ),
        click.option("--labels", help="Labels, separated by commas, e.g. router,gateway."),
        click.option("--type", help="router, gateway or worker; overrides the type in --role."),
        click.option("--transport", help="Transport of heartbeats: websocket or http [websocket]."),
        click.option(
            "--role",
            help="production, development or backup, alone or with the type: production-router"
            " [development-worker].",
        ),
    ):
        command = option(command)
    return add_connection_options(command)


class SettingClickError(click.ClickException):
    exit_code = 2


def load_configuration(
    options: dict[str, str | None], *, writing: bool
) -> tuple[AgentSettings, Path]:
    """Return the settings, with those that bootstrap saved, and the state directory.

    Raises: BadSettingError: a setting is invalid. StateError: the state directory cannot be used.
    """
    directory = load_settings(options).state_dir or identity.find_state_dir(writing=writing)
    saved = identity.read_bootstrap_settings(directory)
    return load_settings(options, saved, source=str(directory / identity.BOOTSTRAP)), directory


@contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except BadSettingError as error:
        raise SettingClickError(escape(str(error))) from None
    except (StateError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    raise click.ClickException(escape(message))
