"""The type of columns that hold an enum."""

from typing import Any

from sqlalchemy import Enum


def make_enum_type(values: type[Any], name: str) -> Any:
    """Return the type of a text column that a check constraint limits to an enum's values."""
    return Enum(
        values,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=20,
        values_callable=lambda members: [member.value for member in members],
    )
