"""Bounds on what callers may send.

Each function returns the valid value, or raises BadInput, which names the field.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson

from db.core.errors import BadInput
from db.core.identity import ACTOR_PREFIXES
from graph.core.visible_text import is_name, is_visible

MAX_NAME_LENGTH = 255
MAX_NOTE_LENGTH = 2000
MAX_LABELS = 64
MAX_DOCUMENT_BYTES = 64 * 1024
MAX_METRICS_BYTES = 16 * 1024
MAX_REQUIREMENT_BYTES = 4 * 1024
MAX_BATCH_SIZE = 1000
MAX_SEARCH_VALUES = 1000
MAX_GPUS = 64
MAX_PROFILES = 100
MAX_LIFETIME = timedelta(days=3650)
MAX_USES = 1_000_000

P = ParamSpec("P")
ValueT = TypeVar("ValueT")
ResultT = TypeVar("ResultT")

_IDENTIFIER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:@-]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/=:-]{0,61}[A-Za-z0-9])?")


def check_optional(
    check: Callable[Concatenate[str, ValueT, P], ResultT],
    field: str,
    value: ValueT | None,
    *arguments: P.args,
    **options: P.kwargs,
) -> ResultT | None:
    """Return what `check` returns for a value, or None for an absent one."""
    return None if value is None else check(field, value, *arguments, **options)


def check_identifier(field: str, value: str) -> str:
    """Check an id: at most 255 letters, digits and, except at the ends, any of . _ : @ -"""
    if len(value) > MAX_NAME_LENGTH or not _IDENTIFIER.fullmatch(value):
        raise BadInput(
            field,
            f"must be 1 to {MAX_NAME_LENGTH} letters, digits or any of . _ : @ -"
            " and begin and end with a letter or digit",
        )
    return value


def check_name(field: str, value: str) -> str:
    """Check a name that people read, by the rule of `visible_text.is_name`."""
    if not 1 <= len(value) <= MAX_NAME_LENGTH:
        raise BadInput(field, f"must have 1 to {MAX_NAME_LENGTH} characters")
    if not is_name(value):
        raise BadInput(
            field,
            "must be words of visible characters, separated by single spaces, none of which begins"
            " with a combining mark",
        )
    return value


def check_token_name(field: str, value: str) -> str:
    """Check the name of a token, which must not look like an actor."""
    if value.startswith(ACTOR_PREFIXES):
        raise BadInput(field, f"must not begin with {', '.join(ACTOR_PREFIXES)}")
    return check_name(field, value)


def check_note(field: str, value: str) -> str:
    """Check a text of several lines and at most 2,000 characters."""
    if len(value) > MAX_NOTE_LENGTH:
        raise BadInput(field, f"must have at most {MAX_NOTE_LENGTH} characters")
    if not is_visible(value.replace("\n", "").replace("\t", "")):
        raise BadInput(field, "must have visible characters, spaces, tabs and line breaks only")
    return value


def check_labels(field: str, values: Sequence[str]) -> tuple[str, ...]:
    """Check labels as Kubernetes does: at most 64 of at most 63 characters.

    Return them in their order without duplicates.
    """
    distinct = tuple(dict.fromkeys(values))
    if len(distinct) > MAX_LABELS:
        raise BadInput(field, f"must be at most {MAX_LABELS}")
    for i, value in enumerate(values):
        if not _LABEL.fullmatch(value):
            raise BadInput(
                f"{field}[{i}]",
                "must be 1 to 63 letters, digits or any of . _ - / = :"
                " and begin and end with a letter or digit",
            )
    return distinct


def check_search_values(field: str, values: Sequence[str]) -> tuple[str, ...]:
    """Check values to search for: up to 1,000, which need not exist."""
    if len(values) > MAX_SEARCH_VALUES:
        raise BadInput(field, f"must be at most {MAX_SEARCH_VALUES}")
    for i, value in enumerate(values):
        check_search_value(f"{field}[{i}]", value)
    return tuple(values)


def check_search_value(field: str, value: str) -> str:
    """Check a value to search for, which need not exist."""
    if len(value) > MAX_NAME_LENGTH or "\0" in value:
        raise BadInput(field, f"must have at most {MAX_NAME_LENGTH} characters, none of them NUL")
    return value


def check_document(
    field: str, value: object, max_bytes: int = MAX_DOCUMENT_BYTES
) -> dict[str, Any]:
    """Check a JSON object of bounded size, whose depth the JSON scalar has checked already."""
    if not isinstance(value, Mapping):
        raise BadInput(field, "must be a JSON object")
    if len(orjson.dumps(value)) > max_bytes:
        raise BadInput(field, f"must be at most {max_bytes // 1024} KiB of JSON")
    return dict(value)


def check_number(
    field: str, value: float | None, *, minimum: float = 0, maximum: float = 1e15
) -> float | None:
    if value is not None and not (math.isfinite(value) and minimum <= value <= maximum):
        raise BadInput(field, f"must be a number from {minimum:g} to {maximum:g}")
    return value


def check_lifetime(field: str, seconds: int, *, minimum: int = 1) -> timedelta:
    """Check a lifetime of at most ten years, and return it as a timedelta."""
    maximum = MAX_LIFETIME // timedelta(seconds=1)
    if not minimum <= seconds <= maximum:
        raise BadInput(field, f"must be {minimum} to {maximum}")
    return timedelta(seconds=seconds)


def check_count(field: str, number: int, *, maximum: int) -> int:
    if not 1 <= number <= maximum:
        raise BadInput(field, f"must be 1 to {maximum}")
    return number
