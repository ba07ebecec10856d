"""The custom scalars: how their values are written, and which values are rejected."""

import ipaddress
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NewType

import strawberry
from graphql import Undefined
from strawberry.types.scalar import ScalarDefinition

IPAddress = NewType("IPAddress", str)
JSON = NewType("JSON", object)
Revision = NewType("Revision", int)

MAX_JSON_DEPTH = 32
_INT64 = range(-(2**63), 2**63)
_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")


def _parse_datetime(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004  # graphql-core reports ValueError
    try:
        # Python 3.11 stops reading at a NUL.
        instant = datetime.fromisoformat(_check_text(value))
    except ValueError as error:
        raise ValueError("must be an ISO 8601 date and time") from error
    if instant.tzinfo is None:
        raise ValueError("must have an offset from UTC, e.g. Z or +00:00")
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be within the years 1 to 9999 in UTC") from error


def _parse_ip_address(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004  # as above
    if "%" in value:
        raise ValueError("must not contain a zone")
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ValueError("must be an IPv4 or IPv6 address without a prefix length") from error


def _parse_revision(value: object) -> int:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not _WHOLE_NUMBER.fullmatch(text):
        raise ValueError("must be a whole number as a decimal string")
    if (number := int(text)) not in _INT64:
        raise ValueError("must fit in 64 bits")
    return number


def parse_json(value: object) -> object:
    """Return a JSON value that PostgreSQL can store, with at most 32 levels.

    It contains no NUL and no whole number beyond 64 bits. A variable in a literal that has no
    value removes its key from an object and is null in a list.

    Raises: ValueError: PostgreSQL cannot store the value, or it has more levels.
    """
    return _parse_json_value(value, MAX_JSON_DEPTH)


def _parse_json_value(value: object, levels: int) -> object:
    match value:
        case str():
            return _check_text(value)
        case int() if value not in _INT64:
            raise ValueError("a whole number must fit in 64 bits")
        case float() if not math.isfinite(value):
            raise ValueError("a number must be finite")
        case Mapping():
            return {
                _check_text(key): _parse_json_value(item, _enter_level(levels))
                for key, item in value.items()
                if item is not Undefined
            }
        case list():
            return [
                None if item is Undefined else _parse_json_value(item, _enter_level(levels))
                for item in value
            ]
    return value


def _enter_level(levels: int) -> int:
    if levels == 0:
        raise ValueError(f"must have at most {MAX_JSON_DEPTH} levels")
    return levels - 1


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("text must not contain the character NUL")
    return text


def _define_scalar(name: str, description: str, **options: Any) -> ScalarDefinition:
    definition: ScalarDefinition = strawberry.scalar(name=name, description=description, **options)
    return definition


SCALARS: Mapping[object, ScalarDefinition] = {
    datetime: _define_scalar(
        "DateTime",
        "An instant, ISO 8601 in UTC with an offset, e.g. 2025-01-17T14:30:00+00:00.",
        specified_by_url="https://scalars.graphql.org/andimarek/date-time",
        serialize=lambda value: value.astimezone(UTC).isoformat(),
        parse_value=_parse_datetime,
    ),
    JSON: _define_scalar(
        "JSON",
        "Any JSON value.",
        specified_by_url="https://ecma-international.org/publications-and-standards/standards/ecma-404/",
        serialize=lambda value: value,
        parse_value=parse_json,
    ),
    IPAddress: _define_scalar(
        "IPAddress",
        "An IPv4 or IPv6 address without a prefix length.",
        serialize=str,
        parse_value=_parse_ip_address,
    ),
    Revision: _define_scalar(
        "Revision",
        "A position in the registry's change log: a whole number, sent as a decimal string."
        " It starts at 1, has no gaps and never goes backwards.",
        serialize=str,
        parse_value=_parse_revision,
    ),
}
