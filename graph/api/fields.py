"""Short forms of Strawberry's declarations of fields and arguments."""

from typing import Any

import strawberry

INPUT = strawberry.argument(description="The input of the mutation.")

ACTOR_DESCRIPTION = (
    "An actor is token/NAME (whoever holds a token of this name), node/NODE_ID (a node with the"
    " token of its enrolment), jwt/SUBJECT, tls/NODE_ID (a node with a certificate),"
    " system/registry, system/anonymous, or system/cli/USER (a command)."
)


def field(description: str) -> Any:
    return strawberry.field(description=description)


def optional(description: str) -> Any:
    """Declare an input field that is None unless the caller sets it."""
    return strawberry.field(description=description, default=None)
