"""Profiles: kept, merged and put together; the merge is RFC 7396's."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from db import profiles
from db.database import Database
from db.profile_changes import put_of_node
from db.profiles import EffectiveProfile, ProfileContent, merge_patch
from db.tables import Node, NodeProfile, RoleProfile
from db.values import NodeRole, NodeType, ProfileType
from tests.support.fleet import AGENT, register


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


async def put(database: Database, node: Node, *contents: ProfileContent) -> dict[str, NodeProfile]:
    async with database.write() as session:
        await put_of_node(session, node.id, node.node_id, contents, by=AGENT)
    async with database.read() as session:
        found = await profiles.of_nodes(session, [node.id])
    return {profile.profile_name: profile for profile in found[node.id]}


LLAMA = ProfileContent("llama", ProfileType.LLM, {"context": 8192, "layers": [1, {"a": None}]})


@pytest.mark.parametrize(
    "changed",
    [
        ProfileContent("llama", ProfileType.SERVICE, LLAMA.config),
        ProfileContent("llama", ProfileType.LLM, {"context": 4096}),
        ProfileContent("llama", ProfileType.LLM, LLAMA.config, enabled=False),
    ],
    ids=["type", "config", "enabled"],
)
async def test_a_profile_is_a_new_version_when_it_says_something_new(
    database: Database, changed: ProfileContent
) -> None:
    node, _ = await register(database, "node-3")
    first = (await put(database, node, LLAMA))["llama"]
    assert (first.version, first.config) == (1, LLAMA.config)
    assert (await put(database, node, LLAMA))["llama"] == first
    second = (await put(database, node, changed))["llama"]
    assert (second.id, second.version, second.created_at) == (first.id, 2, first.created_at)
    assert second.updated_at > first.updated_at
    assert (second.profile_type, second.config, second.enabled) == (
        changed.type,
        changed.config,
        changed.enabled,
    )


async def test_profiles_that_are_not_named_stay(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await put(database, node, LLAMA)
    found = await put(database, node, ProfileContent("proxy", ProfileType.SERVICE, {}))
    assert list(found) == ["llama", "proxy"]
    assert await put(database, node) == found


async def test_each_node_has_its_own_profiles(database: Database) -> None:
    one, _ = await register(database, "node-3")
    other, _ = await register(database, "node-4")
    await put(database, one, LLAMA)
    async with database.read() as session:
        found = await profiles.of_nodes(session, [one.id, other.id])
        assert [len(found[node.id]) for node in (one, other)] == [1, 0]
        assert await profiles.of_nodes(session, []) == {}


def of_role(
    name: str,
    config: dict[str, Any],
    *,
    node_type: NodeType = NodeType.WORKER,
    enabled: bool = True,
) -> dict[str, Any]:
    return {
        "node_role": NodeRole.DEVELOPMENT,
        "node_type": node_type,
        "profile_name": name,
        "profile_type": ProfileType.SERVICE,
        "config": config,
        "enabled": enabled,
    }


async def test_a_node_starts_from_the_profiles_of_its_role_and_type(database: Database) -> None:
    node, _ = await register(database, "node-3")
    bare, _ = await register(database, "node-4", role=NodeRole.BACKUP)
    await put(
        database,
        node,
        ProfileContent("both", ProfileType.LLM, {"a": {"x": None, "z": 3}, "new": 1}),
        ProfileContent("off", ProfileType.LLM, {"mine": 1}, enabled=False),
        ProfileContent("own", ProfileType.CAPABILITY, {"gpu": True, "none": None}),
        ProfileContent("replaces-off", ProfileType.LLM, {"mine": 1}),
    )
    async with database.write() as session:
        await session.execute(
            insert(RoleProfile),
            [
                of_role("both", {"a": {"x": 1, "y": 2}, "list": [1]}),
                of_role("off", {"role": 1}),
                of_role("replaces-off", {"role": 1}, enabled=False),
                of_role("role", {"only": None}),
                of_role("another-type", {}, node_type=NodeType.ROUTER),
            ],
        )
    async with database.read() as session:
        found = await profiles.effective(session, [node.id, bare.id])
    assert found[bare.id] == []
    assert found[node.id] == [
        EffectiveProfile(
            "both",
            ProfileType.LLM,
            {"a": {"y": 2, "z": 3}, "list": [1], "new": 1},
            from_role=True,
            from_node=True,
        ),
        EffectiveProfile("off", ProfileType.SERVICE, {"role": 1}, from_role=True, from_node=False),
        EffectiveProfile(
            "own", ProfileType.CAPABILITY, {"gpu": True}, from_role=False, from_node=True
        ),
        EffectiveProfile(
            "replaces-off", ProfileType.LLM, {"mine": 1}, from_role=False, from_node=True
        ),
        EffectiveProfile(
            "role", ProfileType.SERVICE, {"only": None}, from_role=True, from_node=False
        ),
    ]
