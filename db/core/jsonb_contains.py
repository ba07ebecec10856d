"""Whether one JSON document contains another as jsonb's `@>` has it; of documents that are parsed.

https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT
"""

from collections import defaultdict
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

MAX_STEPS = 100_000
"""More than it takes to go through two documents of 64 KiB; only arrays in arrays take more."""

_EXACT_BELOW = 2**53


def contains(whole: Any, part: Any) -> bool:
    """PostgreSQL's `whole @> part`, of two values as orjson reads them.

    Asks of `whole` no more than `part` names. Only nested arrays, of which each element of `part`
    may be in each of `whole`, can take longer than that: then both are indexed once, and the worst
    of 64 KiB take most of a second. `part` may be as deep as Python recurses.
    """
    if isinstance(whole, list) and not isinstance(part, (dict, list)):
        part = [part]  # at the top alone, an array contains a bare value
    try:
        return _contains_value(whole, part, [MAX_STEPS])
    except _TooManySteps:
        return _contains_by_index(whole, part)


class _TooManySteps(Exception):
    pass


def _contains_value(whole: Any, part: Any, steps_left: list[int]) -> bool:
    """From the top down, trying each pair of elements that may belong together."""
    if isinstance(part, str):
        return bool(whole == part)
    if isinstance(part, dict):
        if not isinstance(whole, dict) or len(whole) < len(part):
            return False
        _spend_steps(steps_left, 1 + len(part))
        for key, wanted in part.items():  # a generator here would double the time
            if key not in whole or not _contains_value(whole[key], wanted, steps_left):
                return False
        return True
    if isinstance(part, list):
        return isinstance(whole, list) and _contains_array(whole, part, steps_left)
    return _make_comparison_key(whole) == _make_comparison_key(part)


def _contains_array(whole: list[Any], part: list[Any], steps_left: list[int]) -> bool:
    _spend_steps(steps_left, 1 + len(part) + len(whole))
    scalars = {
        _make_comparison_key(wanted) for wanted in part if not isinstance(wanted, (dict, list))
    }
    if scalars and not scalars.issubset(map(_make_comparison_key, whole)):
        return False
    for wanted in part:
        if isinstance(wanted, (dict, list)):
            for element in whole:
                if _contains_value(element, wanted, steps_left):
                    break
            else:
                return False
    return True


def _spend_steps(steps_left: list[int], steps: int) -> None:
    steps_left[0] -= steps
    if steps_left[0] < 0:
        raise _TooManySteps


def _make_comparison_key(value: Any) -> Hashable:
    """Of a scalar its value, equal if jsonb's are; of an object or array only which it is.

    A boolean is no number, and a number is the decimal that it is written as: a double beyond 2**53
    is written with fewer digits than it has.
    """
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, (dict, list)):
        return type(value)
    if isinstance(value, float) and abs(value) >= _EXACT_BELOW:
        return int(Decimal(repr(value)))
    return value  # type: ignore[no-any-return]  # a text, a number or None


Edge = tuple[str | None, int]
"""From a container to what it holds: the key, None in an array; and the number of the shape."""


def _contains_by_index(whole: Any, part: Any) -> bool:
    """From the bottom up: for each shape within `part`, all places in `whole` that contain it."""
    nodes = _flatten(whole)
    places: dict[Hashable, set[int]] = defaultdict(set)
    for place, (value, _, _) in enumerate(nodes):
        places[_make_comparison_key(value)].add(place)

    wanted = _flatten(part)
    edges: list[set[Edge]] = [set() for _ in wanted]
    shapes: dict[Hashable, int] = {}
    above: dict[Edge, set[int]] = {}  # the containers of which such an edge leads to such a shape
    holders: set[int] = set()
    for i in reversed(range(len(wanted))):  # what is held comes behind what holds it
        value, parent, key = wanted[i]
        shape = (_make_comparison_key(value), frozenset(edges[i]))
        edge = (key, shapes.setdefault(shape, len(shapes)))
        if edge not in above:
            # The rarest first: an intersection takes as long as the smaller set.
            rarest_first = sorted((above[held] for held in edges[i]), key=len)
            holders = (
                set.intersection(*rarest_first)
                if rarest_first
                else places[_make_comparison_key(value)]
            )
            if not holders:
                return False
            above[edge] = {nodes[p][1] for p in holders if p != 0 and nodes[p][2] == key}
        edges[parent].add(edge)
    return 0 in holders


def _flatten(document: Any) -> list[tuple[Any, int, str | None]]:
    """Each value in it, itself first, with its parent's index here and its key there."""
    laid_out: list[tuple[Any, int, str | None]] = [(document, 0, None)]
    for place, (value, _, _) in enumerate(laid_out):  # grows while it is gone through
        if isinstance(value, dict):
            laid_out.extend((held, place, key) for key, held in value.items())
        elif isinstance(value, list):
            laid_out.extend((held, place, None) for held in value)
    return laid_out
