"""Log events are short, whatever they are about."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.core.token_format import generate_token
from graph.telemetry.log_bounds import (
    MAX_EVENT_LENGTH,
    MAX_TEXT_LENGTH,
    MAX_TRACEBACK_LENGTH,
    shorten_fields,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def shorten(**event: Any) -> Any:
    return shorten_fields(None, "", event)


def measure(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))


@given(VALUES)
def test_what_is_short_is_kept(value: Any) -> None:
    kept = shorten(event="node.registered", value=value)
    assert kept["event"] == "node.registered"
    if isinstance(value, str | int | float | None):
        assert kept["value"] is value or kept["value"] == value


LONG = "\x00é\ud800" * 100_000
DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        LONG,
        LONG.encode(errors="replace"),
        [LONG] * 1000,
        {LONG: LONG, "a": {"b": [LONG]}},
        {f"{number}": "x" * 90 for number in range(100_000)},
        [[["x" * 90] * 100] * 100] * 100,
        10**100_000,
        (LONG,),
        {LONG},
        DEEP,
        ValueError(LONG),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_field_of_any_kind_is_bounded(value: Any) -> None:
    event = shorten(field=value, event="request.rejected", timestamp="2026-01-01")
    assert event["event"] == "request.rejected"
    assert event["timestamp"] == "2026-01-01"
    assert measure(event) < 4 * MAX_EVENT_LENGTH


def test_many_long_fields_are_bounded_together() -> None:
    event = shorten(**{f"field{number}": "x" * 10_000 for number in range(50)})
    assert sum(map(len, event.values())) < MAX_EVENT_LENGTH + 50 * 150


def test_a_shortened_text_keeps_its_beginning_and_its_end() -> None:
    text = shorten(field="begin" + "x" * 10_000 + "end")["field"]
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(text) < MAX_TEXT_LENGTH + 50


@pytest.mark.parametrize("place", range(MAX_TEXT_LENGTH // 2 - 60, MAX_TEXT_LENGTH // 2 + 10, 7))
def test_no_part_of_a_secret_is_left_where_a_text_is_cut(place: int) -> None:
    token = generate_token().text
    for text in ("x" * (place - 1) + " " + token + " " * 2000, " " * 2000 + token + "y" * place):
        field = shorten(field=text)["field"]
        assert not any(token[at : at + 6] in field for at in range(14, len(token) - 6))


def test_a_traceback_keeps_more() -> None:
    event = shorten(exception="x" * 1_000_000)
    assert MAX_TEXT_LENGTH < len(event["exception"]) < MAX_TRACEBACK_LENGTH + 50
