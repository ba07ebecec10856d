"""The bound on log events: texts from outside, of any length and form, become short ones."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from structlog.types import EventDict, WrappedLogger

from db.core.token_format import redact_tokens

MAX_TEXT_LENGTH = 1000
MAX_ITEMS = 100
MAX_DEPTH = 8
MAX_EVENT_LENGTH = 10_000
"""Characters of all fields together, without the traceback."""

MAX_TRACEBACK_LENGTH = 20_000

_TRACEBACK = "exception"
_MAX_INTEGER_BITS = 4096
_ALWAYS_KEPT_LENGTH = 100  # the name of an event and its time, however long the other fields are
_CUT = "…"


def shorten_fields(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Shorten what is too long in an event, in nested values too; a processor of structlog."""
    fields = _Shortener(MAX_EVENT_LENGTH)
    traceback = _Shortener(MAX_TRACEBACK_LENGTH, MAX_TRACEBACK_LENGTH)
    return {
        name: value
        if name.startswith("_")  # of structlog itself
        else (traceback if name == _TRACEBACK else fields).shorten(value, MAX_DEPTH)
        for name, value in event.items()
    }


class _Shortener:
    """Shortens the values of one event, which together have at most `remaining` characters."""

    def __init__(self, remaining: int, max_text_length: int = MAX_TEXT_LENGTH) -> None:
        self._remaining = remaining
        self._max_text_length = max_text_length

    def shorten(self, value: Any, depth: int) -> Any:
        match value:
            case bool() | float() | None:
                return value
            case int():
                fits = value.bit_length() <= _MAX_INTEGER_BITS
                return value if fits else f"a number of {value.bit_length()} bits"
            case str():
                return self._shorten_text(value)
            case Mapping() | list() | tuple() | set() | frozenset():
                return self._shorten_items(value, depth - 1) if depth else _CUT
        return self._shorten_text(repr(value))

    def _shorten_items(self, values: Any, depth: int) -> Any:
        kept: list[Any] = []
        pairs = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in islice(pairs, MAX_ITEMS):
            if self._remaining <= 0:
                break
            name = self._shorten_text(key) if isinstance(key, str) else key
            kept.append((name, self.shorten(value, depth)))
        left_out = len(values) - len(kept)
        more = [(_CUT, f"{left_out} more")] if left_out else []
        if isinstance(values, Mapping):
            return dict(kept + more)
        return [value for _, value in kept + more]

    def _shorten_text(self, text: str) -> str:
        """Keep the beginning and the end: errors often quote their input in the middle.

        Tokens are redacted first, because half a token is not recognized later.
        """
        length = max(_ALWAYS_KEPT_LENGTH, min(self._max_text_length, self._remaining))
        self._remaining -= min(len(text), length)
        if len(text) > length:
            text = redact_tokens(text)
        if len(text) <= length:
            return text
        half = length // 2
        end = text[-half:]
        return f"{text[:half]}{_CUT} {len(text) - 2 * half} more {_CUT}{end}"
