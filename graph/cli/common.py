"""The settings and the caller of commands that an operator runs."""

import getpass

from db.core.enums import Role
from db.core.identity import COMMAND_LINE_PREFIX, Caller, Identity
from graph.core.settings import Settings, load_settings
from graph.telemetry import logs


def load_command_settings() -> Settings:
    """Return the settings, and configure logging to show warnings and errors only.

    Raises: ConfigurationError: a setting is invalid.
    """
    settings = load_settings()
    logs.configure_logging(settings.env, "warning")
    return settings


def identify_operator() -> Caller:
    """Return the caller of a command: an administrator, because the database can be reached."""
    return Caller(Identity(f"{COMMAND_LINE_PREFIX}{getpass.getuser()}", Role.ADMIN))
