"""Profiles: how they are stored, and how they are merged for a node."""

from typing import Any

import pytest
from sqlalchemy import insert

from db.core.database import Database
from db.core.enums import NodeRole, NodeType, ProfileType
from db.core.tables import Node, NodeProfile, RoleProfile
from db.registry import profiles
from db.registry.profile_changes import write_registered_profiles
from db.registry.profiles import EffectiveProfile, ProfileContent
from tests.support.fleet import AGENT, register


async def write_profiles(
    database: Database, node: Node, *contents: ProfileContent
) -> dict[str, NodeProfile]:
    async with database.write() as session:
        await write_registered_profiles(session, node.id, node.node_id, contents, caller=AGENT)
    async with database.read() as session:
        profiles_by_node = await profiles.list_node_profiles(session, [node.id])
    return {profile.profile_name: profile for profile in profiles_by_node[node.id]}


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
async def test_changed_profile_gets_a_new_version(
    database: Database, changed: ProfileContent
) -> None:
    node, _ = await register(database, "node-3")
    first = (await write_profiles(database, node, LLAMA))["llama"]
    assert (first.version, first.config) == (1, LLAMA.config)
    assert (await write_profiles(database, node, LLAMA))["llama"] == first
    second = (await write_profiles(database, node, changed))["llama"]
    assert (second.id, second.version, second.created_at) == (first.id, 2, first.created_at)
    assert second.updated_at > first.updated_at
    assert (second.profile_type, second.config, second.enabled) == (
        changed.type,
        changed.config,
        changed.enabled,
    )


async def test_profiles_absent_from_a_registration_stay(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await write_profiles(database, node, LLAMA)
    stored = await write_profiles(database, node, ProfileContent("proxy", ProfileType.SERVICE, {}))
    assert list(stored) == ["llama", "proxy"]
    assert await write_profiles(database, node) == stored


async def test_each_node_has_its_own_profiles(database: Database) -> None:
    first, _ = await register(database, "node-3")
    second, _ = await register(database, "node-4")
    await write_profiles(database, first, LLAMA)
    async with database.read() as session:
        profiles_by_node = await profiles.list_node_profiles(session, [first.id, second.id])
        assert [len(profiles_by_node[node.id]) for node in (first, second)] == [1, 0]
        assert await profiles.list_node_profiles(session, []) == {}


def make_role_profile(
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


async def test_effective_profiles_merge_node_profiles_over_role_profiles(
    database: Database,
) -> None:
    node, _ = await register(database, "node-3")
    other_node, _ = await register(database, "node-4", role=NodeRole.BACKUP)
    await write_profiles(
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
                make_role_profile("both", {"a": {"x": 1, "y": 2}, "list": [1]}),
                make_role_profile("off", {"role": 1}),
                make_role_profile("replaces-off", {"role": 1}, enabled=False),
                make_role_profile("role", {"only": None}),
                make_role_profile("another-type", {}, node_type=NodeType.ROUTER),
            ],
        )
    async with database.read() as session:
        profiles_by_node = await profiles.compute_effective_profiles(
            session, [node.id, other_node.id]
        )
    assert profiles_by_node[other_node.id] == []
    assert profiles_by_node[node.id] == [
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
