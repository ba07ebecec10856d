"""Actors: no name of a node, token or user makes one caller pass for another."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from db.access.audit import MAX_REJECTIONS_PER_MINUTE
from db.core.database import Database
from db.core.enums import Role
from db.core.identity import ACTOR_PREFIXES
from tests.support.api import MAINTENANCE
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_enrolment, create_token
from tests.support.waiting import wait_until

REGISTER = "mutation ($input: RegisterNodeInput!) { registerNode(input: $input) { key } }"
AUDIT = """query ($filter: AuditFilter) {
  auditLog(filter: $filter, first: 200) { nodes { actor action subject outcome } }
}"""


class Registry:
    """A registry that requires credentials, with an administrator's token."""

    def __init__(self, server: LiveServer, admin: str) -> None:
        self.server, self.admin = server, admin

    async def post(self, token: str, query: str, **variables: Any) -> dict[str, Any]:
        response = await self.server.http.post(
            "/graphql",
            json={"query": query, "variables": variables},
            headers={"authorization": f"Bearer {token}"},
        )
        body: dict[str, Any] = response.json()
        return body

    async def enrol(self, database: Database, node_id: str) -> str:
        """Return the token of a new node."""
        enrolment = await create_enrolment(database, name="rack")
        body = await self.post(enrolment.text, REGISTER, input=describe_node(node_id))
        token: str = body["data"]["registerNode"]["key"]
        return token

    async def list_audit(self, **audit_filter: str) -> Sequence[Mapping[str, str]]:
        body = await self.post(self.admin, AUDIT, filter=audit_filter)
        entries: Sequence[Mapping[str, str]] = body["data"]["auditLog"]["nodes"]
        return entries


def describe_node(node_id: str) -> dict[str, str]:
    return {"nodeId": node_id, "bootId": "boot-1", "role": "DEVELOPMENT", "type": "WORKER"}


def find_code(body: Mapping[str, Any]) -> str | None:
    return body["errors"][0]["extensions"]["code"] if "errors" in body else None


@pytest.mark.parametrize("name", ["alice", "anonymous", "registry"])
async def test_a_node_named_like_somebody_acts_as_a_node(
    start_server: StartServer, database: Database, name: str
) -> None:
    admin = await create_token(database, Role.ADMIN)
    person = await create_token(database, Role.OPERATOR, name=name)
    async with start_server(auth="required") as server:
        registry = Registry(server, admin.text)
        node_token = await registry.enrol(database, name)
        again = {**describe_node(name), "name": "renamed"}
        await registry.post(node_token, REGISTER, input=again)
        await registry.post(person.text, MAINTENANCE, input={"nodeId": name, "enabled": True})
        await registry.post(node_token, MAINTENANCE, input={"nodeId": name, "enabled": False})
        changes = await registry.post(
            admin.text, "{ statusChanges(first: 1) { nodes { actor reason } } }"
        )
        assert changes["data"]["statusChanges"]["nodes"] == [
            {"actor": f"token/{name}", "reason": "MAINTENANCE_STARTED"}
        ]
        by_person = await registry.list_audit(actor=f"token/{name}")
        assert [entry["action"] for entry in by_person] == ["node.set_maintenance"]
        await wait_until(lambda: has_rejection(registry, f"node/{name}"))
        by_node = await registry.list_audit(actor=f"node/{name}")
        assert {(entry["action"], entry["outcome"]) for entry in by_node} == {
            ("node.register", "ok"),
            ("node.set_maintenance", "FORBIDDEN"),
        }
        assert await registry.list_audit(actor=name) == []
        assert await registry.list_audit(actor=f"system/{name}") == []


async def has_rejection(registry: Registry, actor: str) -> bool:
    return bool(await registry.list_audit(actor=actor, outcome="FORBIDDEN"))


async def test_a_node_uses_up_the_rate_of_no_token_of_its_name(
    start_server: StartServer, database: Database
) -> None:
    admin = await create_token(database, Role.ADMIN)
    person = await create_token(database, Role.OPERATOR, name="alice")
    options: dict[str, Any] = {"requests_per_second": 1, "registrations_per_minute": 2}
    async with start_server(auth="required", **options) as server:
        registry = Registry(server, admin.text)
        node_token = await registry.enrol(database, "alice")
        query = "{ __typename }"
        codes = [find_code(await registry.post(node_token, query)) for _ in range(6)]
        assert "RATE_LIMITED" in codes
        assert find_code(await registry.post(person.text, query)) is None


async def test_rejections_of_a_node_hide_none_of_a_token_of_its_name(
    start_server: StartServer, database: Database
) -> None:
    admin = await create_token(database, Role.ADMIN)
    person = await create_token(database, Role.VIEWER, name="alice")
    async with start_server(auth="required") as server:
        registry = Registry(server, admin.text)
        node_token = await registry.enrol(database, "alice")
        for number in range(MAX_REJECTIONS_PER_MINUTE + 2):
            maintenance = {"nodeId": f"node-{number}", "enabled": True}
            body = await registry.post(node_token, MAINTENANCE, input=maintenance)
            assert find_code(body) == "FORBIDDEN"
        maintenance = {"nodeId": "alice", "enabled": True}
        body = await registry.post(person.text, MAINTENANCE, input=maintenance)
        assert find_code(body) == "FORBIDDEN"
        [rejection] = await registry.list_audit(actor="token/alice")
        assert (rejection["subject"], rejection["outcome"]) == ("alice", "FORBIDDEN")


async def test_anonymous_and_the_registry_are_actors_of_the_system(
    server: LiveServer, database: Database
) -> None:
    await server.execute(MAINTENANCE, input={"nodeId": "node-1-hetzner-gex44", "enabled": True})
    await create_token(database)
    data = await server.execute("{ statusChanges(first: 3) { nodes { actor } } }")
    assert [change["actor"] for change in data["statusChanges"]["nodes"]] == [
        "system/anonymous",
        "system/registry",
        "system/registry",
    ]


@pytest.mark.parametrize("prefix", ACTOR_PREFIXES)
async def test_no_token_is_named_like_an_actor(server: LiveServer, prefix: str) -> None:
    create = "mutation ($input: CreateTokenInput!) { createToken(input: $input) { key } }"
    body = await server.post(create, input={"role": "VIEWER", "name": f"{prefix}alice"})
    [error] = body["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["extensions"]["field"] == "input.name"
