"""Token mutations: what admins do with tokens, and how an agent gets a token of its own."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from db.access import tokens
from db.core.database import Database
from db.core.enums import Role
from db.core.identity import Identity
from tests.support.fleet import fetch_rows
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import (
    DAY,
    HOUR,
    age_tokens,
    create_enrolment,
    create_token,
    find_token,
    list_valid_tokens,
    revoke_token,
)

CREATE = """
mutation ($input: CreateTokenInput!) {
  createToken(input: $input) { key token { id name role nodes expiresAt createdBy lastUsedAt } }
}
"""
CREATE_ENROLMENT = """
mutation ($input: CreateEnrolmentTokenInput!) {
  createEnrolmentToken(input: $input) {
    key
    token { role usesLeft nodeRole nodeType labels }
  }
}
"""
ROTATE = """
mutation ($input: RotateTokenInput!) { rotateToken(input: $input) { key token { id name } } }
"""
REVOKE = """
mutation ($input: RevokeTokenInput!) { revokeToken(input: $input) { tokens { id revokedAt } } }
"""
TOKENS = """
query ($first: Int, $after: String, $standing: Boolean! = true) {
  tokens(first: $first, after: $after, standing: $standing) {
    nodes { id name role revokedAt }
    edges { cursor }
    pageInfo { hasNextPage endCursor }
  }
}
"""
REGISTER = """
mutation ($input: RegisterNodeInput!) {
  registerNode(input: $input) { key keyExpiresAt node { nodeId } }
}
"""
ROTATE_MINE = "mutation { rotateNodeKey { key keyExpiresAt } }"
GPU_1 = {"nodeId": "gpu-1", "role": "PRODUCTION", "type": "WORKER", "bootId": "boot-1"}


async def post(server: LiveServer, token_text: str, query: str, **variables: Any) -> dict[str, Any]:
    response = await server.http.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {token_text}"},
    )
    body: dict[str, Any] = response.json()
    return body


async def run_query(
    server: LiveServer, token_text: str, query: str, **variables: Any
) -> dict[str, Any]:
    """Return the data of the only root field."""
    body = await post(server, token_text, query, **variables)
    assert "errors" not in body, body["errors"]
    [data] = body["data"].values()
    assert isinstance(data, dict)
    return data


async def find_error_code(server: LiveServer, token_text: str, query: str, **variables: Any) -> str:
    """Return the error's code, and its field if it names one."""
    body = await post(server, token_text, query, **variables)
    assert "errors" in body, body
    [error] = body["errors"]
    facts = error["extensions"]
    return f"{facts['code']} {facts.get('field', '')}".strip()


@pytest.fixture
async def server_with_auth(start_server: StartServer) -> AsyncIterator[LiveServer]:
    """A server that requires authentication and does not look for tokens that expire."""
    options = {"sweep_interval_seconds": 3600, "key_check_seconds": 60}
    async with start_server(auth="required", **options) as live:
        yield live


@pytest.fixture
def registry_database(server_with_auth: LiveServer) -> Database:
    return server_with_auth.services.database


@pytest.fixture
async def admin(registry_database: Database) -> str:
    return (await create_token(registry_database, Role.ADMIN, name="root")).text


async def test_an_admin_creates_tokens_that_are_shown_once(
    server_with_auth: LiveServer, registry_database: Database, admin: str
) -> None:
    token_input = {
        "role": "AGENT",
        "name": "rack-1",
        "nodes": ["a", "b", "a"],
        "expiresInSeconds": 60,
    }
    issued = await run_query(server_with_auth, admin, CREATE, input=token_input)
    token = await find_token(registry_database, issued["key"])
    assert token is not None
    assert token.expires_at == token.created_at + timedelta(minutes=1)
    assert issued["token"] == {
        "id": token.public_id,
        "name": "rack-1",
        "role": "AGENT",
        "nodes": ["a", "b"],
        "expiresAt": token.expires_at.isoformat(),
        "createdBy": "token/root",
        "lastUsedAt": None,
    }
    assert issued["key"] not in str(await run_query(server_with_auth, admin, TOKENS))


async def test_an_admin_creates_enrolment_tokens(
    server_with_auth: LiveServer, registry_database: Database, admin: str
) -> None:
    token_input = {
        "uses": 5,
        "expiresInSeconds": 3600,
        "nodeRole": "BACKUP",
        "nodeType": "GATEWAY",
        "labels": ["gpu"],
        "keyExpiresInSeconds": 86400,
    }
    issued = await run_query(server_with_auth, admin, CREATE_ENROLMENT, input=token_input)
    assert issued["token"] == {
        "role": "ENROLMENT",
        "usesLeft": 5,
        "nodeRole": "BACKUP",
        "nodeType": "GATEWAY",
        "labels": ["gpu"],
    }
    token = await find_token(registry_database, issued["key"])
    assert token is not None
    assert (token.lifetime, token.expires_at) == (DAY, token.created_at + HOUR)


@pytest.mark.parametrize(
    ("query", "arguments", "field"),
    [
        (CREATE, {"role": "AGENT"}, "input.nodes"),
        (CREATE, {"role": "ADMIN", "nodes": ["a"]}, "input.nodes"),
        (CREATE, {"role": "AGENT", "nodes": [f"n{n}" for n in range(1001)]}, "input.nodes"),
        (CREATE, {"role": "AGENT", "nodes": ["a", "no id"]}, "input.nodes[1]"),
        (CREATE, {"role": "ENROLMENT"}, "input.role"),
        (CREATE, {"role": "VIEWER", "name": "\n"}, "input.name"),
        (CREATE, {"role": "VIEWER", "expiresInSeconds": 0}, "input.expiresInSeconds"),
        (CREATE, {"role": "VIEWER", "expiresInSeconds": 2**31 - 1}, "input.expiresInSeconds"),
        (CREATE_ENROLMENT, {"uses": 0, "expiresInSeconds": 1}, "input.uses"),
        (CREATE_ENROLMENT, {"uses": 2_000_000, "expiresInSeconds": 1}, "input.uses"),
        (CREATE_ENROLMENT, {"uses": 1, "expiresInSeconds": -1}, "input.expiresInSeconds"),
        (
            CREATE_ENROLMENT,
            {"uses": 1, "expiresInSeconds": 1, "keyExpiresInSeconds": 0},
            "input.keyExpiresInSeconds",
        ),
        (CREATE_ENROLMENT, {"uses": 1, "expiresInSeconds": 1, "labels": [""]}, "input.labels[0]"),
        (ROTATE, {"id": "x" * 256}, "input.id"),
        (ROTATE, {"id": "x", "overlapSeconds": -1}, "input.overlapSeconds"),
        (REVOKE, {"id": "\0"}, "input.id"),
    ],
)
async def test_invalid_input_is_rejected_with_its_field_and_creates_no_token(
    server_with_auth: LiveServer, admin: str, query: str, arguments: dict[str, Any], field: str
) -> None:
    assert (
        await find_error_code(server_with_auth, admin, query, input=arguments)
        == f"BAD_INPUT {field}"
    )
    issued = await fetch_rows(server_with_auth.services.database, "SELECT name FROM tokens")
    assert issued == [("root",)]


async def test_an_admin_rotates_and_revokes_tokens(
    server_with_auth: LiveServer, registry_database: Database, admin: str
) -> None:
    old = await create_token(registry_database, name="grafana")
    arguments = {"id": old.token.public_id, "overlapSeconds": 0}
    issued = await run_query(server_with_auth, admin, ROTATE, input=arguments)
    assert issued["token"]["name"] == "grafana"
    assert await list_valid_tokens(registry_database, old) == []
    assert await find_token(registry_database, issued["key"]) is not None
    ended = await run_query(server_with_auth, admin, REVOKE, input={"id": issued["token"]["id"]})
    assert [token["id"] for token in ended["tokens"]] == [issued["token"]["id"]]
    assert await find_token(registry_database, issued["key"]) is None
    arguments = {"id": issued["token"]["id"]}
    for query in (ROTATE, REVOKE):
        assert (
            await find_error_code(server_with_auth, admin, query, input=arguments)
            == "TOKEN_NOT_FOUND"
        )


async def test_tokens_are_listed_in_pages(
    server_with_auth: LiveServer, registry_database: Database, admin: str
) -> None:
    for n in range(3):
        await create_token(registry_database, name=f"key-{n}")
    await revoke_token(registry_database, "key-1")
    page = await run_query(server_with_auth, admin, TOKENS, first=1)
    assert [token["name"] for token in page["nodes"]] == ["key-2"]
    assert page["pageInfo"] == {"hasNextPage": True, "endCursor": page["edges"][0]["cursor"]}
    page = await run_query(server_with_auth, admin, TOKENS, after=page["pageInfo"]["endCursor"])
    assert [token["name"] for token in page["nodes"]] == ["key-0", "root"]
    everything = (await run_query(server_with_auth, admin, TOKENS, standing=False))["nodes"]
    assert [bool(token["revokedAt"]) for token in everything] == [False, True, False, False]
    assert await find_error_code(server_with_auth, admin, TOKENS, first=1001) == "BAD_INPUT first"


async def test_a_registration_with_an_enrolment_token_returns_the_nodes_own_token(
    server_with_auth: LiveServer, registry_database: Database
) -> None:
    enrolment = await create_enrolment(registry_database)
    registered = await run_query(server_with_auth, enrolment.text, REGISTER, input=GPU_1)
    token = await find_token(registry_database, registered["key"])
    assert token is not None
    assert tokens.to_identity(token) == Identity(
        "node/gpu-1", Role.AGENT, frozenset({"gpu-1"}), token.id
    )
    assert token.expires_at is not None
    assert registered["keyExpiresAt"] == token.expires_at.isoformat()


async def test_a_rejected_enrolment_registers_no_node(
    server_with_auth: LiveServer, registry_database: Database
) -> None:
    enrolment = await create_enrolment(registry_database, labels=[])
    arguments = GPU_1 | {"labels": ["gpu"]}
    caller = enrolment.text
    assert (
        await find_error_code(server_with_auth, caller, REGISTER, input=arguments)
        == "FORBIDDEN input.labels"
    )
    assert await fetch_rows(registry_database, "SELECT 1 FROM nodes WHERE node_id = 'gpu-1'") == []


async def test_a_registration_with_a_nodes_own_token_returns_its_expiry_and_no_token(
    server_with_auth: LiveServer, registry_database: Database
) -> None:
    agent_token = await create_token(registry_database, Role.AGENT, nodes=["gpu-1"])
    assert agent_token.token.expires_at is not None
    assert await run_query(server_with_auth, agent_token.text, REGISTER, input=GPU_1) == {
        "key": None,
        "keyExpiresAt": agent_token.token.expires_at.isoformat(),
        "node": {"nodeId": "gpu-1"},
    }


async def test_a_registration_by_an_admin_returns_no_token(
    server_with_auth: LiveServer, admin: str
) -> None:
    registered = await run_query(server_with_auth, admin, REGISTER, input=GPU_1)
    assert (registered["key"], registered["keyExpiresAt"]) == (None, None)


async def test_an_agent_rotates_its_own_token_and_both_are_valid_for_the_overlap(
    start_server: StartServer,
) -> None:
    async with start_server(auth="required", node_key_overlap_seconds=3600) as server:
        database = server.services.database
        old = await create_token(database, Role.AGENT, nodes=["gpu-1"], lifetime=10 * DAY)
        issued = await run_query(server, old.text, ROTATE_MINE)
        new = await find_token(database, issued["key"])
        assert new is not None
        assert (new.nodes, new.replaces) == (["gpu-1"], old.token.id)
        assert datetime.fromisoformat(issued["keyExpiresAt"]) == new.expires_at
        assert await list_valid_tokens(database, old) == [old]
        registered = await run_query(server, old.text, REGISTER, input=GPU_1)
        expires_at = datetime.fromisoformat(registered["keyExpiresAt"])
        assert expires_at == new.created_at + HOUR, "an agent that lost the response learns it"
        await age_tokens(database, HOUR)
        assert await list_valid_tokens(database, old) == []
        assert await find_token(database, issued["key"]) is not None


@pytest.mark.parametrize("role", [Role.ENROLMENT, Role.VIEWER, Role.ADMIN])
async def test_only_an_agent_rotates_its_own_token(
    server_with_auth: LiveServer, registry_database: Database, role: Role
) -> None:
    enrols = role is Role.ENROLMENT
    token = await (
        create_enrolment(registry_database) if enrols else create_token(registry_database, role)
    )
    assert (
        await find_error_code(server_with_auth, token.text, ROTATE_MINE)
        == "FORBIDDEN rotateNodeKey"
    )


async def test_a_token_revoked_in_the_meantime_is_not_rotated(
    server_with_auth: LiveServer, registry_database: Database
) -> None:
    agent_token = await create_token(registry_database, Role.AGENT, nodes=["gpu-1"])
    await run_query(server_with_auth, agent_token.text, REGISTER, input=GPU_1)
    await revoke_token(registry_database, agent_token.token.public_id)
    assert await find_error_code(server_with_auth, agent_token.text, ROTATE_MINE) == "FORBIDDEN"


async def test_a_token_from_enrolment_or_rotation_is_valid_immediately(
    server_with_auth: LiveServer, registry_database: Database
) -> None:
    enrolment = await create_enrolment(registry_database)
    first = (await run_query(server_with_auth, enrolment.text, REGISTER, input=GPU_1))["key"]
    second = (await run_query(server_with_auth, first, ROTATE_MINE))["key"]
    for token_text in (first, second):
        assert (await run_query(server_with_auth, token_text, REGISTER, input=GPU_1))["node"] == {
            "nodeId": "gpu-1"
        }
    assert (
        await find_error_code(server_with_auth, enrolment.text, REGISTER, input=GPU_1)
        == "FORBIDDEN"
    )
