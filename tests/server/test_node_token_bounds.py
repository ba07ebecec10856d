"""What the holder of a node's token may change, and what it may not, over a real socket."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from graphql import GraphQLInputObjectType
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeRole, NodeType, Role
from graph.api.schema import schema
from tests.support.fleet import fetch_rows
from tests.support.live_server import LiveServer, StartServer
from tests.support.paths import ROOT
from tests.support.tokens import create_enrolment, create_token, revoke_token

REGISTER = """
mutation ($input: RegisterNodeInput!) {
  registerNode(input: $input) { key node { nodeId role type labels } }
}
"""
ROTATE = "mutation { rotateNodeKey { key } }"
BEATS = """
mutation ($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) { __typename ... on HeartbeatRejected { code } }
}
"""
GPU_1 = {
    "nodeId": "gpu-1",
    "role": "DEVELOPMENT",
    "type": "WORKER",
    "labels": ["gpu"],
    "bootId": "boot-1",
}
BOUNDS: dict[str, Any] = {
    "node_role": NodeRole.DEVELOPMENT,
    "node_type": NodeType.WORKER,
    "labels": ["gpu", "rack"],
}

CHANGEABLE: dict[str, Any] = {
    "name": "renamed",
    "ipAddress": "192.0.2.7",
    "localIp": "10.0.0.7",
    "hostname": "alpha",
    "capabilities": {"gpus": 1},
    "metadata": {"rack": 7},
    "profiles": [{"name": "llm", "type": "SERVICE", "config": {}}],
}
BOUND: dict[str, list[Any]] = {
    "role": ["PRODUCTION", "BACKUP"],
    "type": ["ROUTER", "GATEWAY"],
    "labels": [["gpu", "trusted"], ["GPU"], [f"label-{n}" for n in range(64)]],
}
IDENTIFYING = {"nodeId", "bootId", "replacesBootId"}


async def post(server: LiveServer, token: str, query: str, **variables: Any) -> dict[str, Any]:
    response = await server.http.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {token}"},
    )
    body: dict[str, Any] = response.json()
    return body


async def register(server: LiveServer, token: str, **changes: Any) -> dict[str, Any]:
    body = await post(server, token, REGISTER, input=GPU_1 | changes)
    assert "errors" not in body, body
    payload: dict[str, Any] = body["data"]["registerNode"]
    return payload


async def find_rejection(server: LiveServer, token: str, query: str, **variables: Any) -> Any:
    """Return the error's code and field."""
    [error] = (await post(server, token, query, **variables))["errors"]
    return error["extensions"]["code"], error["extensions"].get("field")


async def rotate(server: LiveServer, token: str) -> str:
    body = await post(server, token, ROTATE)
    return str(body["data"]["rotateNodeKey"]["key"])


async def read_stored_state(database: Database) -> list[tuple[Any, ...]]:
    return await fetch_rows(
        database,
        "SELECT 'node', n::text FROM nodes n UNION ALL SELECT 'profile', p::text FROM"
        " node_profiles p UNION ALL SELECT 'change', c::text FROM status_changes c ORDER BY 1, 2",
    )


async def run_statement(database: Database, sql: str) -> None:
    async with database.write() as session:
        await session.execute(text(sql))


@pytest.fixture
async def registry(start_server: StartServer) -> AsyncIterator[LiveServer]:
    """A registry that requires authentication and changes nothing by itself."""
    options = {"sweep_interval_seconds": 3600, "key_check_seconds": 60}
    async with start_server(auth="required", **options) as live:
        yield live


@pytest.fixture
def stored(registry: LiveServer) -> Database:
    return registry.services.database


@pytest.fixture
async def node_token(registry: LiveServer, stored: Database) -> str:
    """The token of gpu-1, which was enrolled as a development worker."""
    enrolment = await create_enrolment(stored, **BOUNDS)
    return str((await register(registry, enrolment.text))["key"])


def test_every_field_of_a_registration_is_changeable_bound_or_identifying() -> None:
    input_type = schema.graphql.type_map["RegisterNodeInput"]
    assert isinstance(input_type, GraphQLInputObjectType)
    assert set(input_type.fields) == {*CHANGEABLE, *BOUND, *IDENTIFYING}


def test_the_readme_lists_what_a_node_token_may_change() -> None:
    [listed] = re.findall(r"A node's token may change (.*?);", (ROOT / "README.md").read_text())
    assert set(re.findall(r"`(\w+)`", listed)) == set(CHANGEABLE)


@pytest.mark.parametrize("field", sorted(CHANGEABLE))
async def test_a_node_token_changes_the_description_of_its_node(
    registry: LiveServer, stored: Database, node_token: str, field: str
) -> None:
    before = await read_stored_state(stored)
    await register(registry, node_token, **{field: CHANGEABLE[field]})
    assert await read_stored_state(stored) != before


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BOUND.items() for value in values]
)
async def test_a_node_token_changes_nothing_beyond_what_its_enrolment_allowed(
    registry: LiveServer, stored: Database, node_token: str, field: str, value: Any
) -> None:
    before = await read_stored_state(stored)
    rejected = {"input": GPU_1 | {field: value, "name": "renamed", "bootId": "boot-2"}}
    for token in (node_token, await rotate(registry, node_token)):
        rejection = await find_rejection(registry, token, REGISTER, **rejected)
        assert rejection == ("FORBIDDEN", f"input.{field}")
    assert await read_stored_state(stored) == before


async def test_the_labels_that_the_enrolment_allowed_may_be_changed_and_omitted(
    registry: LiveServer, node_token: str
) -> None:
    for labels in (["rack"], [], ["rack", "gpu"]):
        assert (await register(registry, node_token, labels=labels))["node"]["labels"] == labels
    assert (await register(registry, node_token, labels=None))["node"]["labels"] == ["rack", "gpu"]


@pytest.mark.parametrize("open_column", sorted(BOUNDS))
async def test_what_the_enrolment_left_open_stays_open(
    registry: LiveServer, stored: Database, open_column: str
) -> None:
    bounds = {column: value for column, value in BOUNDS.items() if column != open_column}
    enrolment = await create_enrolment(stored, **bounds)
    token = (await register(registry, enrolment.text))["key"]
    open_field = {"node_role": "role", "node_type": "type", "labels": "labels"}[open_column]
    for field, [value, *_] in BOUND.items():
        if field == open_field:
            assert (await register(registry, token, **{field: value}))["node"][field] == value
        else:
            rejection = await find_rejection(
                registry, token, REGISTER, input=GPU_1 | {field: value}
            )
            assert rejection == ("FORBIDDEN", f"input.{field}")


async def test_the_bounds_outlive_the_enrolment_token_and_each_rotation(
    registry: LiveServer, stored: Database, node_token: str
) -> None:
    await run_statement(stored, "DELETE FROM tokens WHERE role = 'enrolment'")
    token = node_token
    for _ in range(3):
        token = await rotate(registry, token)
        rejected = {"input": GPU_1 | {"role": "PRODUCTION"}}
        assert await find_rejection(registry, token, REGISTER, **rejected) == (
            "FORBIDDEN",
            "input.role",
        )


async def test_a_removed_node_does_not_return_as_another_kind(
    registry: LiveServer, stored: Database
) -> None:
    """The token of a gateway survives the removal of one of its nodes."""
    gateway = await create_token(stored, Role.AGENT, nodes=["gpu-1", "gpu-2"])
    await run_statement(stored, "UPDATE tokens SET node_type = 'worker' WHERE role = 'agent'")
    await register(registry, gateway.text)
    admin = await create_token(stored, Role.ADMIN)
    remove = 'mutation { deregisterNode(input: {nodeId: "gpu-1"}) { nodeId } }'
    assert "errors" not in await post(registry, admin.text, remove)
    rejected = {"input": GPU_1 | {"type": "ROUTER"}}
    assert await find_rejection(registry, gateway.text, REGISTER, **rejected) == (
        "FORBIDDEN",
        "input.type",
    )


async def test_an_administrator_is_not_bound(
    registry: LiveServer, stored: Database, node_token: str
) -> None:
    admin = await create_token(stored, Role.ADMIN)
    changed = await register(registry, admin.text, role="PRODUCTION", labels=["trusted"])
    assert (changed["node"]["role"], changed["node"]["labels"]) == ("PRODUCTION", ["trusted"])
    kept = await register(registry, node_token, labels=None)
    assert (kept["node"]["role"], kept["node"]["labels"]) == ("DEVELOPMENT", ["trusted"])


async def test_a_node_enrolled_again_by_another_token_is_bound_to_that_one(
    registry: LiveServer, stored: Database
) -> None:
    await register(registry, (await create_enrolment(stored, **BOUNDS)).text)
    await revoke_token(stored, "gpu-1")
    promotion = await create_enrolment(stored, node_role=NodeRole.PRODUCTION)
    token = (await register(registry, promotion.text, role="PRODUCTION"))["key"]
    rejected = {"input": GPU_1}
    assert await find_rejection(registry, token, REGISTER, **rejected) == (
        "FORBIDDEN",
        "input.role",
    )


async def test_an_enrolment_token_binds_each_node_that_it_enrols(
    registry: LiveServer, stored: Database
) -> None:
    enrolment = await create_enrolment(stored, uses=3, **BOUNDS)
    for number in range(3):
        others = {"nodeId": f"gpu-{number}", "bootId": f"boot-{number}"}
        token = (await register(registry, enrolment.text, **others))["key"]
        for field, values in BOUND.items():
            rejected = {"input": GPU_1 | others | {field: values[0]}}
            assert await find_rejection(registry, token, REGISTER, **rejected) == (
                "FORBIDDEN",
                f"input.{field}",
            )


@pytest.mark.parametrize(
    "mutation",
    [
        'deregisterNode(input: {nodeId: "gpu-1"}) { nodeId }',
        'setMaintenance(input: {nodeId: "gpu-1", enabled: true}) { node { nodeId } }',
        'setNodeProfile(input: {nodeId: "gpu-1", name: "p", type: LLM, config: {}}) { __typename }',
        'createToken(input: {role: AGENT, nodes: ["gpu-1"]}) { key }',
        "createEnrolmentToken(input: {uses: 1, expiresInSeconds: 60}) { key }",
        'revokeToken(input: {id: "gpu-1"}) { tokens { id } }',
        'rotateToken(input: {id: "x"}) { key }',
    ],
)
async def test_a_node_token_changes_its_node_in_no_other_way(
    registry: LiveServer, stored: Database, node_token: str, mutation: str
) -> None:
    before = await read_stored_state(stored)
    code, _ = await find_rejection(registry, node_token, f"mutation {{ {mutation} }}")
    assert code == "FORBIDDEN"
    assert await read_stored_state(stored) == before


async def test_a_node_token_registers_and_reports_no_other_node(
    registry: LiveServer, stored: Database, node_token: str
) -> None:
    other = await create_token(stored, Role.AGENT, nodes=["gpu-2"])
    await register(registry, other.text, nodeId="gpu-2", bootId="boot-2")
    before = await read_stored_state(stored)
    rejected = {"input": GPU_1 | {"nodeId": "gpu-2", "bootId": "boot-2"}}
    code, _ = await find_rejection(registry, node_token, REGISTER, **rejected)
    assert code == "FORBIDDEN"
    beats = [
        {"nodeId": node_id, "bootId": boot_id, "sequence": 1, "status": "DEGRADED"}
        for node_id, boot_id in (("gpu-2", "boot-2"), ("gpu-1", "boot-2"))
    ]
    body = await post(registry, node_token, BEATS, inputs=beats)
    codes = [result["code"] for result in body["data"]["recordHeartbeats"]]
    assert codes == ["FORBIDDEN", "STALE_BOOT"]
    assert await read_stored_state(stored) == before


async def test_a_revoked_token_changes_nothing_though_its_process_has_not_noticed(
    registry: LiveServer, stored: Database, node_token: str
) -> None:
    await register(registry, node_token)
    await revoke_token(stored, "gpu-1")
    before = await read_stored_state(stored)
    renamed = {"input": GPU_1 | {"name": "renamed"}}
    code, _ = await find_rejection(registry, node_token, REGISTER, **renamed)
    assert code == "UNAUTHENTICATED", "so that an agent enrols again"
    assert (await find_rejection(registry, node_token, ROTATE))[0] == "FORBIDDEN"
    assert await read_stored_state(stored) == before
