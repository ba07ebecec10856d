"""Containment of the largest documents gives way after each short step."""

import time
from typing import Any

import pytest

from db.core.jsonb_contains import compare, count_containers_in_arrays
from db.registry.node_filter import MAX_CONTAINERS_IN_ARRAYS, NodeFilter

MAX_STEP_SECONDS = 0.2
"""Of CPU time; the longest takes a tenth of it."""


def nest(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ([[[]] for _ in range(13_000)], [nest([], 30), *([nest([], n)] for n in range(15))]),
        ([[n % 10] for n in range(16_000)], [[-n] for n in range(1, 1000)]),
        ([{"a": n} for n in range(8_000)], [{"a": n} for n in range(400)]),
        (list(range(11_000)), [[], {}] * 800),
        ([{}, []] * 11_000, [{"a": {}}, [[]]] * 300),
        ([nest(1, 29)] * 900, [nest(2, 29)] * 60),
        ({"a": {"b": [{str(n): [n]} for n in range(5_000)]}}, {"a": {"b": [{"4999": [-1]}] * 200}}),
    ],
    ids=["arrays", "numbers", "objects", "scalars", "empty", "deep", "keys"],
)
def test_no_step_of_containment_is_long(whole: Any, part: Any) -> None:
    longest, began = 0.0, time.thread_time()
    for _ in compare(whole, part):
        ended = time.thread_time()
        longest, began = max(longest, ended - began), ended
    assert max(longest, time.thread_time() - began) < MAX_STEP_SECONDS


@pytest.mark.parametrize(
    ("document", "count"),
    [
        (1, 0),
        ([], 0),
        ({"a": {"b": {}}}, 0),
        ({"a": [1, "b", None]}, 0),
        ([[], {}], 2),
        ({"a": [{"b": {"c": [1]}}]}, 3),
        ({"a": [[[]]], "b": [{}]}, 3),
    ],
)
def test_containers_within_arrays_are_counted_at_any_depth(document: Any, count: int) -> None:
    assert count_containers_in_arrays(document) == count


def test_a_filter_with_many_containers_within_arrays_is_left_to_the_database() -> None:
    few, many = (
        NodeFilter(capabilities=f'{{"a":[{",".join(["{}"] * count)}]}}')
        for count in (MAX_CONTAINERS_IN_ARRAYS, MAX_CONTAINERS_IN_ARRAYS + 1)
    )
    assert few.get_database_part() is None
    assert many.get_database_part() == many
