"""Keyset pages: a cursor is the sort key of a row, so pages stay right while rows come and go."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import orjson
from sqlalchemy import ColumnElement, Select, tuple_

from db.core.errors import BadInput

MAX_PAGE_SIZE = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    rows: Sequence[T]
    has_next: bool


@dataclass(frozen=True, slots=True)
class Keyset:
    """An order of rows without ties: the columns, their Python types, one direction for all.

    `name` is part of each cursor, so that a cursor made for another order is refused.
    """

    name: str
    columns: Sequence[ColumnElement[Any]]
    types: Sequence[type]
    descending: bool = False

    def select_page(self, statement: Select[Any], *, first: int, after: str | None) -> Select[Any]:
        """The rows behind `after`, one more than asked for: its presence tells `has_next`.

        Raises BadInput for a size that is out of bounds or a cursor from elsewhere.
        """
        require_page_size(first)
        if after is not None:
            key, bound = tuple_(*self.columns), tuple_(*self.decode_cursor(after))
            statement = statement.where(key < bound if self.descending else key > bound)
        order = [c.desc() if self.descending else c.asc() for c in self.columns]
        return statement.order_by(*order).limit(first + 1)

    def encode_cursor(self, *key: object) -> str:
        content = orjson.dumps([self.name, *key], default=str)
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    def decode_cursor(self, cursor: str) -> list[Any]:
        """Raises BadInput for what `encode` of this keyset did not make."""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            name, *values = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            _require(name == self.name)
            return [
                _decode_value(kind, value) for kind, value in zip(self.types, values, strict=True)
            ]
        except (ValueError, TypeError, OverflowError, binascii.Error) as error:
            raise BadInput("after", "not a cursor of this list and order") from error


def require_page_size(size: int, field: str = "first") -> None:
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise BadInput(field, f"must be 0 to {MAX_PAGE_SIZE}")


def make_page(rows: Sequence[T], first: int) -> Page[T]:
    return Page(rows[:first], has_next=len(rows) > first)


def _decode_value(kind: type, value: Any) -> Any:
    if kind is int:
        _require(type(value) is int and -(2**63) <= value < 2**63)
        return value
    _require(isinstance(value, str) and "\0" not in value)
    if kind is datetime:
        instant = datetime.fromisoformat(value)
        _require(instant.tzinfo is not None)
        return instant.astimezone(UTC)
    return kind(value)


def _require(condition: bool) -> None:  # noqa: FBT001  # an assertion that is never left out
    if not condition:
        raise ValueError
