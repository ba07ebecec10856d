"""Profiles: kept, merged and put together; the merge is RFC 7396's."""

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
def test_a_merge_is_that_of_the_examples_of_rfc_7396(
    original: Any, patch: Any, result: Any
) -> None:
    assert merge_patch(original, patch) == result


def test_a_merge_is_that_of_the_document_in_rfc_7396() -> None:
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


def documents(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
        max_leaves=8,
    )


WHOLE = documents(st.booleans() | st.integers(0, 2) | st.just("x"))
ANY = documents(st.none() | st.integers(0, 2))


@given(ANY, ANY)
def test_a_merge_said_twice_is_said_once(target: Any, patch: Any) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@given(ANY, ANY)
def test_a_merge_changes_neither_of_its_two(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    merge_patch(target, patch)
    assert (target, patch) == before


@given(ANY)
def test_an_empty_patch_leaves_an_object_as_it_is(target: Any) -> None:
    assert merge_patch(target, {}) == (target if isinstance(target, dict) else {})


def patch_between(old: Any, new: Any) -> Any:
    """The patch that leads from one document to another."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    changed = {
        key: patch_between(old.get(key), value)
        for key, value in new.items()
        if key not in old or old[key] != value or type(old[key]) is not type(value)
    }
    return changed | {key: None for key in old if key not in new}


@given(WHOLE, WHOLE)
def test_a_patch_leads_from_any_document_to_any_without_nulls(old: Any, new: Any) -> None:
    assert merge_patch(old, patch_between(old, new)) == new
