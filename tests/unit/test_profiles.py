"""The merge of profiles by RFC 7396."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.registry.profiles import merge_patch


@pytest.mark.parametrize(
    ("original", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merges_match_the_examples_of_rfc_7396(original: Any, patch: Any, result: Any) -> None:
    assert merge_patch(original, patch) == result


def test_the_merge_matches_the_document_in_rfc_7396() -> None:
    article = {
        "title": "Goodbye!",
        "author": {"givenName": "John", "familyName": "Doe"},
        "tags": ["example", "sample"],
        "content": "This will be unchanged",
    }
    patch = {
        "title": "Hello!",
        "phoneNumber": "+01-123-456-7890",
        "author": {"familyName": None},
        "tags": ["example"],
    }
    assert merge_patch(article, patch) == {
        "title": "Hello!",
        "author": {"givenName": "John"},
        "tags": ["example"],
        "content": "This will be unchanged",
        "phoneNumber": "+01-123-456-7890",
    }


def make_documents(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
        max_leaves=8,
    )


WHOLE = make_documents(st.booleans() | st.integers(0, 2) | st.just("x"))
ANY = make_documents(st.none() | st.integers(0, 2))


@given(ANY, ANY)
def test_a_merge_is_idempotent(target: Any, patch: Any) -> None:
    merged = merge_patch(target, patch)
    assert merge_patch(merged, patch) == merged


@given(ANY, ANY)
def test_a_merge_changes_neither_argument(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    merge_patch(target, patch)
    assert (target, patch) == before


@given(ANY)
def test_an_empty_patch_leaves_an_object_unchanged(target: Any) -> None:
    assert merge_patch(target, {}) == (target if isinstance(target, dict) else {})


def make_patch(old: Any, new: Any) -> Any:
    """Return the patch that turns one document into another."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    patch = {
        key: make_patch(old.get(key), value)
        for key, value in new.items()
        if key not in old or old[key] != value or type(old[key]) is not type(value)
    }
    return patch | {key: None for key in old if key not in new}


@given(WHOLE, WHOLE)
def test_a_patch_turns_any_document_into_any_other_without_nulls(old: Any, new: Any) -> None:
    assert merge_patch(old, make_patch(old, new)) == new
