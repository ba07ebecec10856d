"""What a command of an operator starts from: the configuration, and who gives it."""

import getpass

from db.identity import Caller, Identity
from db.values import Role
from graph import logs
from graph.settings import Settings, load


def configured() -> Settings:
    settings = load()
    logs.configure(settings.env, "warning")
    return settings


def operator() -> Caller:
    """Who can reach the database may do everything."""
    return Caller(Identity(f"{getpass.getuser()} at the command line", Role.ADMIN))
