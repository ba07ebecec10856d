"""jsonb's containment, `@>`, for parsed JSON documents.

https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT
"""

from collections import defaultdict
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

from db.core.turns import Steps, run_to_end

MAX_QUICK_STEPS = 20_000
"""Steps within milliseconds, after which documents are indexed: only nested arrays take more."""

_FLATTENED_PER_STEP = 500
_EXACT_BELOW = 2**53


def contains(whole: Any, part: Any) -> bool:
    """Return what `compare` does, however long it takes."""
    return run_to_end(compare(whole, part))


def compare(whole: Any, part: Any) -> Steps[bool]:
    """Return PostgreSQL's `whole @> part` for two values as orjson parses them.

    It reads no more of `whole` than `part` names. Only arrays, where each container within `part`
    may be in each of `whole`, take longer: after MAX_QUICK_STEPS both are indexed once, which takes
    a time proportional to the values in `whole` times the containers within arrays of `part`.
    `part` may be as deep as Python recurses.
    """
    if isinstance(whole, list) and not isinstance(part, (dict, list)):
        part = [part]  # an array contains a bare value, at the top level only
    try:
        return _contains_value(whole, part, [MAX_QUICK_STEPS])
    except _TooManySteps:
        yield
        return (yield from _contains_by_index(whole, part))


def count_containers_in_arrays(document: Any) -> int:
    """Return how many objects and arrays the document holds within arrays, at any depth."""
    count = 0
    pending = [(document, False)]
    while pending:
        value, is_within = pending.pop()
        if isinstance(value, (dict, list)):
            count += is_within
            is_within = is_within or isinstance(value, list)
            members = value.values() if isinstance(value, dict) else value
            pending.extend((member, is_within) for member in members)
    return count


class _TooManySteps(Exception):
    pass


def _contains_value(whole: Any, part: Any, steps_left: list[int]) -> bool:
    """Compare from the top down, trying each pair of elements that may match."""
    if isinstance(part, str):
        return bool(whole == part)
    if isinstance(part, dict):
        if not isinstance(whole, dict) or len(whole) < len(part):
            return False
        _spend_steps(steps_left, 1 + len(part))
        for key, value in part.items():  # a generator here would double the time
            if key not in whole or not _contains_value(whole[key], value, steps_left):
                return False
        return True
    if isinstance(part, list):
        return isinstance(whole, list) and _contains_array(whole, part, steps_left)
    return _make_comparison_key(whole) == _make_comparison_key(part)


def _contains_array(whole: list[Any], part: list[Any], steps_left: list[int]) -> bool:
    _spend_steps(steps_left, 1 + len(part) + len(whole))
    scalars = {_make_comparison_key(value) for value in part if not isinstance(value, (dict, list))}
    if scalars and not scalars.issubset(map(_make_comparison_key, whole)):
        return False
    for value in part:
        if isinstance(value, (dict, list)):
            _spend_steps(steps_left, len(whole))
            for element in whole:
                if _contains_value(element, value, steps_left):
                    break
            else:
                return False
    return True


def _spend_steps(steps_left: list[int], steps: int) -> None:
    steps_left[0] -= steps
    if steps_left[0] < 0:
        raise _TooManySteps


def _make_comparison_key(value: Any) -> Hashable:
    """Return a key that is equal for scalars that jsonb considers equal.

    The key of an object or array is its type. A boolean is not a number, and a number is the
    decimal that it is written as: a double beyond 2**53 is written with fewer digits than it has.
    """
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, (dict, list)):
        return type(value)
    if isinstance(value, float) and abs(value) >= _EXACT_BELOW:
        return int(Decimal(repr(value)))
    return value  # type: ignore[no-any-return]  # a string, a number or None


Edge = tuple[str | None, int]
"""From a container to a value in it: the key, None in an array, and the number of its shape."""


def _contains_by_index(whole: Any, part: Any) -> Steps[bool]:
    """Compare members of objects one by one, and arrays by an index of their values."""
    if isinstance(part, list) and isinstance(whole, list):
        return (yield from _contains_array_by_index(whole, part))
    if not (isinstance(part, dict) and isinstance(whole, dict)):
        return _make_comparison_key(whole) == _make_comparison_key(part)
    for key, value in part.items():
        yield
        if key not in whole or not (yield from _contains_by_index(whole[key], value)):
            return False
    return True


def _contains_array_by_index(whole: list[Any], part: list[Any]) -> Steps[bool]:
    """Compare from the bottom up: find, for each shape within `part`, all places that contain it.

    A shape is a value with the shapes of what it holds, so equal values have the same shape. A
    place is the index of a value in the flattened `whole`.
    """
    nodes = yield from _flatten(whole)
    places: dict[Hashable, set[int]] = defaultdict(set)
    for place, (value, _, _) in enumerate(nodes):
        places[_make_comparison_key(value)].add(place)
        if place % _FLATTENED_PER_STEP == 0:
            yield

    part_nodes = yield from _flatten(part)
    edges: list[set[Edge]] = [set() for _ in part_nodes]
    shapes: dict[Hashable, int] = {}
    above: dict[Edge, set[int]] = {}  # the places of containers with such an edge
    holders: set[int] = set()
    for i in reversed(range(len(part_nodes))):  # contents come after their container
        value, parent, key = part_nodes[i]
        shape = (_make_comparison_key(value), frozenset(edges[i]))
        edge = (key, shapes.setdefault(shape, len(shapes)))
        if edge not in above:
            holders = places[_make_comparison_key(value)]
            # The rarest first, because an intersection takes as long as the smaller set.
            for others in sorted((above[inner] for inner in edges[i]), key=len):
                holders = holders & others
                yield
            if not holders:
                return False
            above[edge] = {nodes[p][1] for p in holders if p != 0 and nodes[p][2] == key}
            yield
        edges[parent].add(edge)
    return 0 in holders


def _flatten(document: Any) -> Steps[list[tuple[Any, int, str | None]]]:
    """Return all values of a document, itself first, with the parent's index and the key there."""
    flat: list[tuple[Any, int, str | None]] = [(document, 0, None)]
    for place, (value, _, _) in enumerate(flat):  # grows while it is iterated
        if isinstance(value, dict):
            flat.extend((member, place, key) for key, member in value.items())
        elif isinstance(value, list):
            flat.extend((element, place, None) for element in value)
        if place % _FLATTENED_PER_STEP == 0:
            yield
    return flat
