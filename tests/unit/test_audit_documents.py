"""What an audit entry holds of its subject: changes, within bounds, without measurements."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.access.audit_documents import (
    MAX_ENTRY_BYTES,
    MAX_VALUE_BYTES,
    bound,
    encode,
    find_changes,
)
from db.registry.node_audit import remove_measurements

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.just("x" * 900),
    lambda parts: st.lists(parts, max_size=6) | st.dictionaries(st.text("ab", max_size=2), parts),
    max_leaves=40,
)
DOCUMENTS = st.dictionaries(st.text("abc", max_size=2), JSON, max_size=12)


def apply_changes(document: dict[str, Any], old: Any, new: Any) -> dict[str, Any]:
    result = {name: value for name, value in document.items() if name not in old or name in new}
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(old.get(name), dict)
        result[name] = apply_changes(document[name], old[name], value) if both else value
    return result


@given(DOCUMENTS, DOCUMENTS)
def test_changes_lead_from_one_document_to_the_other(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = find_changes(before, after)
    assert encode(apply_changes(before, old, new)) == encode(after)
    assert bool(old or new) is (encode(before) != encode(after))


@given(DOCUMENTS | st.none(), DOCUMENTS | st.none())
def test_bounded_documents_are_bounded_whatever_they_hold(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> None:
    bounded = bound(before, after)
    for document, original in zip(bounded, (before, after), strict=True):
        assert (document is None) is (original is None)
        assert document is None or document.keys() == (original or {}).keys()
    digests = 150 * sum(len(document or {}) for document in bounded)
    assert len(encode(bounded)) <= MAX_ENTRY_BYTES + digests


def test_a_short_document_stays_as_it_is() -> None:
    document = {"name": "a", "labels": ["x"] * 20, "capabilities": {"models": ["llama"]}}
    assert bound(None, document) == (None, document)


def test_a_long_value_is_replaced_by_its_size_and_digest() -> None:
    long = ["x" * 50] * 100
    _, after = bound(None, {"capabilities": {"models": long, "os": "linux"}})
    assert after is not None
    digest = after["capabilities"].pop("models")
    assert after == {"capabilities": {"os": "linux"}}
    assert digest["bytes"] == len(encode(long))
    assert len(digest["sha256"]) == 64


def test_many_short_values_are_bounded_together() -> None:
    many = {f"key-{n}": "x" * (MAX_VALUE_BYTES - 10) for n in range(40)}
    before, after = bound(many, many)
    assert len(encode([before, after])) <= MAX_ENTRY_BYTES + 80 * 130
    nested = {"metadata": {f"key-{n}": n for n in range(5000)}}
    assert len(encode(bound(nested, nested))) < 500


def test_one_and_true_differ() -> None:
    assert find_changes({"a": 1, "b": [1]}, {"a": True, "b": [1]}) == ({"a": 1}, {"a": True})


@pytest.mark.parametrize(
    "name",
    [
        *("freeMemoryMb", "memory_free_mb", "diskFreeGb", "load", "loadAverage", "cpuPercent"),
        *("uptimeSeconds", "gpuTemperatureCelsius", "available", "usedBytes"),
    ],
)
def test_a_number_named_like_a_measurement_is_left_out(name: str) -> None:
    assert remove_measurements({"os": "linux", name: 1.5, "gpus": [{name: 7, "kind": "x"}]}) == {
        "os": "linux",
        "gpus": [{"kind": "x"}],
    }


@pytest.mark.parametrize(
    "fact",
    [
        {"cpuCount": 8},
        {"memoryTotalMb": 64_000},
        {"port": 8080},
        {"maxLoad": 5},
        {"load": "balanced"},
        {"available": True},
        {"payload": 3},
        {"freeMemoryLimit": 3},
    ],
)
def test_what_describes_a_node_stays(fact: dict[str, Any]) -> None:
    assert remove_measurements(fact) == fact
