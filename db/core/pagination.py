"""Keyset pagination: a cursor is a row's sort key, so pages stay right while rows come and go."""

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
    """A total order of rows: columns, their Python types, and one direction for all of them.

    `name` is part of each cursor, so that a cursor made for another order is rejected.
    """

    name: str
    columns: Sequence[ColumnElement[Any]]
    types: Sequence[type]
    descending: bool = False

    def select_page(self, statement: Select[Any], *, first: int, after: str | None) -> Select[Any]:
        """Return the statement for `first` rows behind the cursor `after`, and one more.

        The additional row says that there is a next page; `make_page` drops it. Raises: BadInput:
        `first` is out of bounds, or `after` is not a cursor of this keyset.
        """
        require_page_size(first)
        if after is not None:
            key, bound = tuple_(*self.columns), tuple_(*self.decode_cursor(after))
            statement = statement.where(key < bound if self.descending else key > bound)
        order = [c.desc() if self.descending else c.asc() for c in self.columns]
        return statement.order_by(*order).limit(first + 1)

    def encode_cursor(self, *key: object) -> str:
        """Return the cursor of the row that has this sort key."""
        content = orjson.dumps([self.name, *key], default=str)
        return base64.urlsafe_b64encode(content).decode().rstrip("=")

    def decode_cursor(self, cursor: str) -> list[Any]:
        """Return the sort key. Raises: BadInput: `encode_cursor` of this keyset did not make it."""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            name, *values = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            _require(name == self.name)
            return [
                _decode_value(type_, value) for type_, value in zip(self.types, values, strict=True)
            ]
        except (ValueError, TypeError, OverflowError, binascii.Error) as error:
            raise BadInput("after", "not a cursor of this list and order") from error


def require_page_size(size: int, field: str = "first") -> None:
    """Check the size of a page. Raises: BadInput: it is not 0 to MAX_PAGE_SIZE."""
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise BadInput(field, f"must be 0 to {MAX_PAGE_SIZE}")


def make_page(rows: Sequence[T], first: int) -> Page[T]:
    """Return the page of `first` rows out of what the statement of `select_page` selected."""
    return Page(rows[:first], has_next=len(rows) > first)


def _decode_value(type_: type, value: Any) -> Any:
    if type_ is int:
        _require(type(value) is int and -(2**63) <= value < 2**63)
        return value
    _require(isinstance(value, str) and "\0" not in value)
    if type_ is datetime:
        timestamp = datetime.fromisoformat(value)
        _require(timestamp.tzinfo is not None)
        return timestamp.astimezone(UTC)
    return type_(value)


def _require(condition: bool) -> None:  # noqa: FBT001  # an assertion that -O keeps
    if not condition:
        raise ValueError
