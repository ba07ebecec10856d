"""Profile mutations: optimistic locking by version, checks by type, audit entries."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.api import register
from tests.support.live_server import LiveServer

SET_NODE = """
mutation Set($input: SetNodeProfileInput!) {
  setNodeProfile(input: $input) { profile { name type config enabled version } }
}
"""
DELETE_NODE = """
mutation Delete($input: DeleteNodeProfileInput!) { deleteNodeProfile(input: $input) { name } }
"""
SET_ROLE = """
mutation Set($input: SetRoleProfileInput!) {
  setRoleProfile(input: $input) { profile { role type name profileType config version } }
}
"""
DELETE_ROLE = """
mutation Delete($input: DeleteRoleProfileInput!) { deleteRoleProfile(input: $input) { name } }
"""
EFFECTIVE = """
query Effective($nodeId: String!) {
  node(nodeId: $nodeId) {
    profiles { name config version }
    effectiveProfiles { name config fromRole fromNode }
  }
}
"""
ROLE_PROFILES = "{ roleProfiles(role: PRODUCTION) { name type version } }"

ROLE = {"role": "PRODUCTION", "type": "WORKER", "name": "llm"}


async def set_node(server: LiveServer, **fields: Any) -> dict[str, Any]:
    profile_input = {"nodeId": "a", "name": "llm", "type": "LLM", "config": {}, **fields}
    profile: dict[str, Any] = (await server.execute(SET_NODE, input=profile_input))[
        "setNodeProfile"
    ]
    return profile["profile"]  # type: ignore[no-any-return]  # JSON


async def set_role(server: LiveServer, **fields: Any) -> dict[str, Any]:
    profile_input = {**ROLE, "profileType": "LLM", "config": {}, **fields}
    profile: dict[str, Any] = (await server.execute(SET_ROLE, input=profile_input))[
        "setRoleProfile"
    ]
    return profile["profile"]  # type: ignore[no-any-return]  # JSON


async def get_error(server: LiveServer, query: str, **fields: Any) -> dict[str, Any]:
    [error] = (await server.post(query, input=fields))["errors"]
    extensions: dict[str, Any] = error["extensions"]
    return extensions


async def list_audit_entries(server: LiveServer) -> list[tuple[Any, ...]]:
    async with server.services.database.read() as session:
        rows = await session.execute(
            text(
                "SELECT actor, action, subject, before, after FROM audit_log"
                " WHERE action LIKE 'profile.%' ORDER BY id"
            )
        )
        return [tuple(row) for row in rows]


async def test_a_node_profile_is_created_replaced_and_deleted(server: LiveServer) -> None:
    await register(server, "a")
    first = await set_node(server, config={"model": "llama"})
    assert first == {
        "name": "llm",
        "type": "LLM",
        "config": {"model": "llama"},
        "enabled": True,
        "version": 1,
    }
    second = await set_node(server, type="SERVICE", config={"port": 80}, enabled=False)
    assert (second["version"], second["type"], second["enabled"]) == (2, "SERVICE", False)
    deleted = await server.execute(DELETE_NODE, input={"nodeId": "a", "name": "llm"})
    assert deleted == {"deleteNodeProfile": {"name": "llm"}}
    assert (await server.execute(EFFECTIVE, nodeId="a"))["node"]["profiles"] == []


async def test_a_role_profile_applies_to_the_nodes_of_its_role(server: LiveServer) -> None:
    await register(server, "a")
    config = {"model": "llama", "temperature": 0.5, "endpoint": "http://10.0.0.1:11434"}
    await set_role(server, config=config)
    await set_node(server, config={"temperature": 0, "endpoint": None})
    node = (await server.execute(EFFECTIVE, nodeId="a"))["node"]
    assert node["effectiveProfiles"] == [
        {
            "name": "llm",
            "config": {"model": "llama", "temperature": 0},
            "fromRole": True,
            "fromNode": True,
        }
    ]
    await server.execute(DELETE_ROLE, input=ROLE)
    node = (await server.execute(EFFECTIVE, nodeId="a"))["node"]
    assert [p["fromRole"] for p in node["effectiveProfiles"]] == [False]


async def test_role_profiles_are_listed_by_role_type_and_name(server: LiveServer) -> None:
    for role, node_type, name in (
        ("PRODUCTION", "WORKER", "b"),
        ("PRODUCTION", "WORKER", "a"),
        ("PRODUCTION", "GATEWAY", "c"),
        ("BACKUP", "WORKER", "d"),
    ):
        await set_role(server, role=role, type=node_type, name=name)
    listed = (await server.execute(ROLE_PROFILES))["roleProfiles"]
    assert [(p["type"], p["name"]) for p in listed] == [
        ("GATEWAY", "c"),
        ("WORKER", "a"),
        ("WORKER", "b"),
    ]


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_version_conflict_contains_the_current_version(
    server: LiveServer, expected: int
) -> None:
    await register(server, "a")
    for _ in range(2):
        await set_node(server)
        await set_role(server)
    node = {"nodeId": "a", "name": "llm", "expectedVersion": expected}
    role = {**ROLE, "expectedVersion": expected}
    content = {"config": {"model": "x"}}
    for error in (
        await get_error(server, SET_NODE, **node, type="LLM", **content),
        await get_error(server, DELETE_NODE, **node),
        await get_error(server, SET_ROLE, **role, profileType="LLM", **content),
        await get_error(server, DELETE_ROLE, **role),
    ):
        assert (error["code"], error["currentVersion"]) == ("VERSION_CONFLICT", 2)
    assert (await set_node(server, expectedVersion=2))["version"] == 3
    assert (await set_role(server, expectedVersion=2))["version"] == 3


async def test_version_0_requires_that_the_profile_does_not_exist(server: LiveServer) -> None:
    assert (await set_role(server, expectedVersion=0))["version"] == 1
    missing = await get_error(
        server, SET_ROLE, **ROLE | {"name": "x"}, profileType="LLM", config={}, expectedVersion=1
    )
    assert (missing["code"], missing["currentVersion"]) == ("VERSION_CONFLICT", 0)


async def test_one_of_several_writers_of_the_same_version_wins(server: LiveServer) -> None:
    await set_role(server)
    profile_input = {**ROLE, "profileType": "LLM", "expectedVersion": 1}
    replies = await asyncio.gather(
        *(
            server.post(SET_ROLE, input={**profile_input, "config": {"model": str(i)}})
            for i in range(10)
        )
    )
    codes = [reply["errors"][0]["extensions"]["code"] for reply in replies if "errors" in reply]
    assert codes == ["VERSION_CONFLICT"] * 9


async def test_concurrent_creations_of_one_profile_are_written_in_turn(server: LiveServer) -> None:
    versions = [p["version"] for p in await asyncio.gather(*(set_role(server) for _ in range(8)))]
    assert sorted(versions) == list(range(1, 9))


async def test_a_missing_node_or_profile_is_an_error(server: LiveServer) -> None:
    await register(server, "a")
    missing_node = await get_error(server, SET_NODE, nodeId="x", name="llm", type="LLM", config={})
    assert missing_node["code"] == "NODE_NOT_FOUND"
    missing_profile = await get_error(server, DELETE_NODE, nodeId="a", name="llm")
    assert (missing_profile["code"], missing_profile["owner"]) == ("PROFILE_NOT_FOUND", "a")
    missing_profile = await get_error(server, DELETE_ROLE, **ROLE)
    assert (missing_profile["code"], missing_profile["owner"]) == (
        "PROFILE_NOT_FOUND",
        "production/worker",
    )


@pytest.mark.parametrize(
    ("profile_type", "config", "path"),
    [
        ("LLM", {"model": 1}, ".model"),
        ("LLM", {"temperature": 2.1}, ".temperature"),
        ("LLM", {"endpoint": "ftp://a"}, ".endpoint"),
        ("SERVICE", {"port": 0}, ".port"),
        ("SERVICE", {"environment": {"A": {}}}, ".environment.A"),
        ("CAPABILITY", {"requires": ["a", 2]}, ".requires[1]"),
        ("CAPABILITY", {"limits": {"jobs": "many"}}, ".limits.jobs"),
        ("LLM", [], ""),
        ("LLM", {"x": "y" * 65536}, ""),
    ],
)
async def test_a_config_that_does_not_fit_its_type_is_rejected_with_its_path(
    server: LiveServer, profile_type: str, config: Any, path: str
) -> None:
    await register(server, "a")
    profile_input = {"name": "p", "config": config}
    for error, at in (
        (
            await get_error(server, SET_NODE, nodeId="a", type=profile_type, **profile_input),
            "input",
        ),
        (
            await get_error(server, SET_ROLE, **ROLE | profile_input, profileType=profile_type),
            "input",
        ),
    ):
        assert (error["code"], error["field"]) == ("BAD_INPUT", f"{at}.config{path}")
    registration = {
        "role": "BACKUP",
        "type": "WORKER",
        "bootId": "b",
        "profiles": [{**profile_input, "type": profile_type}],
    }
    register_node = (
        "mutation R($input: RegisterNodeInput!) { registerNode(input: $input) {created}}"
    )
    error = await get_error(server, register_node, **registration)
    assert error["field"] == f"input.profiles[0].config{path}"
    assert await list_audit_entries(server) == []


async def test_unknown_config_keys_are_stored(server: LiveServer) -> None:
    config = {"model": "llama", "ours": {"deep": [1, None]}}
    assert (await set_role(server, config=config))["config"] == config


async def test_each_write_records_in_the_audit_log_who_changed_what(server: LiveServer) -> None:
    await register(server, "a", profiles=[{"name": "llm", "type": "LLM", "config": {}}])
    await register(server, "a", profiles=[{"name": "llm", "type": "LLM", "config": {}}])
    await set_node(server, config={"model": "x"})
    await set_role(server)
    await server.execute(DELETE_NODE, input={"nodeId": "a", "name": "llm"})
    empty = {"type": "llm", "config": {}, "enabled": True}
    changed = {"type": "llm", "config": {"model": "x"}, "enabled": True}
    assert await list_audit_entries(server) == [
        ("system/anonymous", "profile.set", "a/llm", None, empty),
        ("system/anonymous", "profile.set", "a/llm", empty, changed),
        ("system/anonymous", "profile.set", "production/worker/llm", None, empty),
        ("system/anonymous", "profile.delete", "a/llm", changed, None),
    ]
