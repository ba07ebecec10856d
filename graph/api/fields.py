"""Short forms of Strawberry's declarations of fields and arguments."""

from typing import Any

import strawberry

INPUT = strawberry.argument(description="The input of the mutation.")


def field(description: str) -> Any:
    return strawberry.field(description=description)


def optional(description: str) -> Any:
    """Declare an input field that is None unless the caller sets it."""
    return strawberry.field(description=description, default=None)
