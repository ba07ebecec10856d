"""What a command of an operator starts from: the configuration, and who gives it."""

import getpass

from db.core.enums import Role
from db.core.identity import Caller, Identity
from graph.core.settings import Settings, load_settings
from graph.telemetry import logs


def load_command_settings() -> Settings:
    settings = load_settings()
    logs.configure_logging(settings.env, "warning")
    return settings


def identify_operator() -> Caller:
    """Who can reach the database may do everything."""
    return Caller(Identity(f"{getpass.getuser()} at the command line", Role.ADMIN))
