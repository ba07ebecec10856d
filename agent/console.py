"""What the agent's commands share: their options, and errors in one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import click

from agent import identity
from agent.identity import StateError
from agent.settings import AgentSettings, BadSettingError, load_settings

Command = TypeVar("Command", bound=Callable[..., None])


def add_connection_options(command: Command) -> Command:
    for option in (
        click.option("--registry-url", help="Where the registry is [http://127.0.0.1:9205]."),
        click.option("--ca-file", help="Whom to trust with https, instead of the usual ones."),
        click.option("--certificate", help="Shown to the registry, which knows the node by it."),
        click.option("--key", help="Of the certificate, if it is in a file of its own."),
        click.option(
            "--state-dir", help="Where the node id is kept [/etc/dagi or ~/.config/dagi]."
        ),
    ):
        command = option(command)
    return command


def add_node_options(command: Command) -> Command:
    for option in (
        click.option("--name", help="A name for people to read."),
        click.option(
            "--services",
            help="Where to look for models and for Docker, with commas between them, or none"
            " [where Ollama, vLLM, LM Studio, llama.cpp and Docker usually are].",
        ),
        click.option("--labels", help="With commas between them, e.g. router,gateway."),
        click.option("--type", help="router, gateway or worker; goes before the type in --role."),
        click.option("--transport", help="websocket or http, for heartbeats [websocket]."),
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
    """The settings, and the directory in which lies what bootstrap was told."""
    directory = load_settings(options).state_dir or identity.find_state_dir(writing=writing)
    saved = identity.read_bootstrap_settings(directory)
    return load_settings(options, saved, source=str(directory / identity.BOOTSTRAP)), directory


@contextmanager
def one_line_errors() -> Iterator[None]:
    try:
        yield
    except BadSettingError as error:
        raise SettingClickError(str(error)) from None
    except (StateError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    raise click.ClickException(message)
