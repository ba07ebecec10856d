"""Short forms of Strawberry's declarations of fields and arguments."""

from typing import Any

import strawberry

INPUT = strawberry.argument(description="What to do it with.")


def field(description: str) -> Any:
    return strawberry.field(description=description)


def optional(description: str) -> Any:
    """Declare a field that is None unless a value is given."""
    return strawberry.field(description=description, default=None)
