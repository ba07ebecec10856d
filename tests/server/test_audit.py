"""The audit log over the API: successful and rejected actions, and the query of administrators."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from structlog.types import EventDict

from db.access import audit
from db.access.audit import EVERY_ENTRY, AuditFilter
from db.core.database import Database
from db.core.enums import Role
from db.core.errors import Forbidden
from db.core.identity import Caller, Identity
from db.core.token_format import generate_token
from graph.api.schema import schema
from graph.execution.document_cache import DocumentCache
from graph.execution.engine import Engine
from graph.execution.forbidden_operation import MAX_ATTEMPTS, record_forbidden
from graph.execution.request import GraphQLRequest
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.api import DEREGISTER, MAINTENANCE, REGISTER, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_token
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

AUDIT_LOG = """
query Trail($filter: AuditFilter, $first: Int, $after: String) {
  auditLog(filter: $filter, first: $first, after: $after) {
    edges { cursor }
    nodes { id recordedAt actor address peerAddress action subject outcome requestId before after }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""
TOKENS = """
mutation Create($input: CreateTokenInput!) { createToken(input: $input) { __typename } }
mutation Enrol($input: CreateEnrolmentTokenInput!) {
  createEnrolmentToken(input: $input) { __typename }
}
mutation Rotate($input: RotateTokenInput!) { rotateToken(input: $input) { __typename } }
mutation Revoke($input: RevokeTokenInput!) { revokeToken(input: $input) { __typename } }
mutation Own { rotateNodeKey { __typename } }
"""
PROFILES = """
mutation SetOfNode($input: SetNodeProfileInput!) { setNodeProfile(input: $input) { __typename } }
mutation DeleteOfNode($input: DeleteNodeProfileInput!) { deleteNodeProfile(input: $input) { name } }
mutation SetOfRole($input: SetRoleProfileInput!) { setRoleProfile(input: $input) { __typename } }
mutation DeleteOfRole($input: DeleteRoleProfileInput!) { deleteRoleProfile(input: $input) { name } }
"""
KNOWN = Caller(Identity("agent-7", Role.ADMIN), "192.0.2.7")


@pytest.fixture
def engine(server: LiveServer) -> Engine:
    return Engine(schema, server.services)


async def handle(
    engine: Engine, query: str, operation: str | None = None, **mutation_input: Any
) -> str:
    request = {"query": query, "operationName": operation, "variables": {"input": mutation_input}}
    response = await engine.handle(GraphQLRequest.model_validate(request), KNOWN)
    assert isinstance(response, str)
    return response


async def get_error_code(
    engine: Engine, query: str, operation: str | None = None, **mutation_input: Any
) -> str | None:
    """Return the code of the error, or None if the operation succeeds."""
    try:
        body = orjson.loads(await handle(engine, query, operation, **mutation_input))
    except Forbidden as error:
        return error.code
    return body["errors"][0]["extensions"]["code"] if "errors" in body else None


async def list_entries(database: Database) -> list[tuple[str, str, str]]:
    """Return action, subject and outcome of each attempt that the log counts, oldest first."""
    async with database.read() as session:
        page = await audit.list_entries(session, EVERY_ENTRY, first=1000, after=None)
    return [
        (entry.action, entry.subject, entry.outcome)
        for entry in reversed(page.rows)
        for _ in range(entry.count)
    ]


async def query_audit_log(server: LiveServer, **variables: Any) -> dict[str, Any]:
    log: dict[str, Any] = (await server.execute(AUDIT_LOG, **variables))["auditLog"]
    return log


async def test_administrators_read_the_audit_log_newest_first(server: LiveServer) -> None:
    await server.http.post(
        "/graphql",
        json={
            "query": REGISTER,
            "variables": {
                "input": {"nodeId": "a", "role": "BACKUP", "type": "WORKER", "bootId": "b"}
            },
        },
        headers={"x-request-id": "request-1"},
    )
    await beat(server, "a", 1, boot_id="b")
    await server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
    newest, oldest = (await query_audit_log(server))["nodes"]
    assert (oldest["actor"], oldest["requestId"]) == ("system/anonymous", "request-1")
    assert (oldest["action"], oldest["subject"], oldest["outcome"]) == ("node.register", "a", "ok")
    assert oldest["before"] is None
    assert oldest["after"]["status"] == "online"
    assert (newest["action"], newest["after"]["status"]) == ("node.set_maintenance", "maintenance")
    assert newest["recordedAt"] > oldest["recordedAt"]


async def test_pages_cover_the_whole_audit_log(server: LiveServer) -> None:
    for name in "abcde":
        await register(server, name)
    subjects, after = [], None
    while True:
        page = await query_audit_log(server, first=2, after=after)
        assert [edge["cursor"] for edge in page["edges"]][-1] == page["pageInfo"]["endCursor"]
        assert page["pageInfo"]["hasPreviousPage"] is (after is not None)
        subjects += [entry["subject"] for entry in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert subjects == list("edcba")


async def test_a_filter_selects_entries_that_meet_all_its_conditions(server: LiveServer) -> None:
    for name in "ab":
        await register(server, name)
        await server.execute(MAINTENANCE, input={"nodeId": name, "enabled": True})
    instant = (await query_audit_log(server))["nodes"][1]["recordedAt"]  # of the registration of b
    for conditions, expected in (
        ({"subject": "a"}, ["node.set_maintenance a", "node.register a"]),
        ({"subject": "a", "action": "node.register"}, ["node.register a"]),
        (
            {"since": instant, "actor": "system/anonymous"},
            ["node.set_maintenance b", "node.register b"],
        ),
        ({"until": instant, "outcome": "ok"}, ["node.set_maintenance a", "node.register a"]),
        ({"since": instant, "until": instant}, []),
        ({"actor": "nobody"}, []),
        ({"outcome": "FORBIDDEN"}, []),
    ):
        found = (await query_audit_log(server, filter=conditions))["nodes"]
        assert [f"{entry['action']} {entry['subject']}" for entry in found] == expected, conditions


@pytest.mark.parametrize(
    ("variables", "field"),
    [
        ({"first": 1001}, "first"),
        ({"after": "x"}, "after"),
        ({"filter": {"actor": "x" * 256}}, "filter.actor"),
        ({"filter": {"subject": "\0"}}, "filter.subject"),
    ],
)
async def test_an_invalid_filter_is_rejected(
    server: LiveServer, variables: dict[str, Any], field: str
) -> None:
    [error] = (await server.post(AUDIT_LOG, **variables))["errors"]
    assert (error["extensions"]["code"], error["extensions"]["field"]) == ("BAD_INPUT", field)


NODE = {"nodeId": "a"}
PROFILE = {"name": "llm", "type": "LLM", "config": {}, "expectedVersion": 7}
ROLE = {"role": "PRODUCTION", "type": "WORKER", "name": "llm"}


@pytest.mark.parametrize(
    ("operation", "mutation_input", "entry"),
    [
        (
            (REGISTER, None),
            NODE | {"role": "BACKUP", "type": "WORKER", "bootId": "other"},
            ("node.register", "a", "NODE_ID_TAKEN"),
        ),
        (
            (REGISTER, None),
            {"role": "BACKUP", "type": "WORKER", "bootId": ""},
            ("node.register", "", "BAD_INPUT"),
        ),
        (
            (MAINTENANCE, None),
            {"nodeId": "x", "enabled": True},
            ("node.set_maintenance", "x", "NODE_NOT_FOUND"),
        ),
        (
            (MAINTENANCE, None),
            NODE | {"enabled": True, "until": "2020-01-01T00:00:00Z"},
            ("node.set_maintenance", "a", "BAD_INPUT"),
        ),
        ((DEREGISTER, None), {"nodeId": "x"}, ("node.deregister", "x", "NODE_NOT_FOUND")),
        (
            (DEREGISTER, None),
            {"nodeId": f"{'x' * 300}\0"},
            ("node.deregister", "x" * 255, "BAD_INPUT"),
        ),
        ((DEREGISTER, None), {"nodeId": "x\0y"}, ("node.deregister", "x?y", "BAD_INPUT")),
        ((PROFILES, "SetOfNode"), NODE | PROFILE, ("profile.set", "a/llm", "VERSION_CONFLICT")),
        (
            (PROFILES, "DeleteOfNode"),
            NODE | {"name": "llm"},
            ("profile.delete", "a/llm", "PROFILE_NOT_FOUND"),
        ),
        (
            (PROFILES, "SetOfRole"),
            ROLE | {"profileType": "LLM", "config": [1]},
            ("profile.set", "production/worker/llm", "BAD_INPUT"),
        ),
        (
            (PROFILES, "DeleteOfRole"),
            ROLE,
            ("profile.delete", "production/worker/llm", "PROFILE_NOT_FOUND"),
        ),
        (
            (TOKENS, "Create"),
            {"role": "AGENT", "name": "x"},
            ("token.create", "x", "BAD_INPUT"),
        ),
        (
            (TOKENS, "Enrol"),
            {"uses": 0, "expiresInSeconds": 60},
            ("token.create", "", "BAD_INPUT"),
        ),
        ((TOKENS, "Rotate"), {"id": "x"}, ("token.rotate", "x", "TOKEN_NOT_FOUND")),
        ((TOKENS, "Own"), {}, ("token.rotate", "", "FORBIDDEN")),
    ],
)
async def test_a_rejection_of_a_known_caller_is_recorded(
    server: LiveServer,
    engine: Engine,
    operation: tuple[str, str | None],
    mutation_input: dict[str, Any],
    entry: tuple[str, str, str],
) -> None:
    await register(server, "a")
    assert await get_error_code(engine, *operation, **mutation_input) == entry[2]
    assert await list_entries(server.services.database) == [("node.register", "a", "ok"), entry]
    rejection = (await query_audit_log(server, first=1))["nodes"][0]
    assert (rejection["actor"], rejection["address"]) == ("agent-7", "192.0.2.7")
    assert (rejection["before"], rejection["after"]) == (None, None)


@pytest.mark.parametrize("operation", ["Revoke", "Rotate"])
async def test_a_token_sent_instead_of_its_id_is_not_recorded(
    server: LiveServer, engine: Engine, logged: list[EventDict], operation: str
) -> None:
    token = generate_token()
    response = await handle(engine, TOKENS, operation, id=token.text)
    assert f"nrk_{token.public_id}…" in response
    assert token.text not in response + repr(logged)
    [entry] = await list_entries(server.services.database)
    action = f"token.{operation.lower()}"
    assert entry == (action, f"nrk_{token.public_id}…", "TOKEN_NOT_FOUND")


async def test_a_rejection_of_an_unknown_caller_is_not_recorded(server: LiveServer) -> None:
    body = await server.post(DEREGISTER, input={"nodeId": "x"})
    assert body["errors"][0]["extensions"]["code"] == "NODE_NOT_FOUND"
    assert await list_entries(server.services.database) == []


async def test_rejections_of_heartbeats_are_not_recorded(
    server: LiveServer, engine: Engine
) -> None:
    record_heartbeat = (
        "mutation($input: RecordHeartbeatInput!) { recordHeartbeat(input: $input) { status } }"
    )
    error_code = await get_error_code(engine, record_heartbeat, nodeId="x", bootId="b", sequence=1)
    assert error_code == "NODE_NOT_FOUND"
    assert await list_entries(server.services.database) == []


async def test_a_rejection_is_returned_even_if_it_cannot_be_recorded(
    start_server: StartServer, database: Database, logged: list[EventDict]
) -> None:
    async with start_server(db_statement_timeout_seconds=0.5) as server:
        engine = Engine(schema, server.services)
        async with database.write() as session:
            await session.execute(text("LOCK TABLE audit_log"))
            assert await get_error_code(engine, DEREGISTER, nodeId="x") == "NODE_NOT_FOUND"
    [lost] = [event for event in logged if event["event"] == "audit.rejection_lost"]
    assert (lost["actor"], lost["subject"]) == ("agent-7", "x")


async def wait_for_write_lock(database: Database) -> None:
    """Wait until a write waits for its lock."""
    waiting_locks = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(10):
        while True:
            async with database.read() as session:
                if await session.scalar(waiting_locks):
                    return
            await asyncio.sleep(0.005)


def get_metric(server: LiveServer, name: str) -> float | None:
    return server.services.metrics.registry.get_sample_value(name)


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER], ids=["rejected", "forbidden"])
async def test_a_rejection_of_a_caller_that_disconnects_is_recorded(
    start_server: StartServer, database: Database, role: Role
) -> None:
    token = await create_token(database, role)
    headers = {"authorization": f"Bearer {token.text}"}
    async with AsyncExitStack() as stack:
        async with start_server() as server:
            session = await stack.enter_async_context(database.write())
            await session.execute(text("LOCK TABLE audit_log"))
            async with connect(server.websocket_url, headers=headers) as client:
                await client.subscribe("1", DEREGISTER, input={"nodeId": "x"})
                await wait_for_write_lock(database)
            await wait_until(lambda: not get_metric(server, "node_registry_connections"))
            await wait_for_write_lock(database)
            await stack.aclose()
        code = "NODE_NOT_FOUND" if role is Role.ADMIN else "FORBIDDEN"
        assert (await list_entries(database))[1:] == [("node.deregister", "x", code)]


async def record_forbidden_operation(server: LiveServer, query: str, **variables: Any) -> None:
    document = DocumentCache(schema.graphql).get_document(GraphQLRequest(query=query))
    assert document.errors == []
    rejections = server.services.rejections
    await record_forbidden(rejections, KNOWN, document.select_operation(None), variables)


async def test_a_forbidden_operation_is_recorded_with_its_action(
    server: LiveServer,
) -> None:
    await record_forbidden_operation(
        server,
        """
        mutation Many($input: DeleteRoleProfileInput!, $id: String!) {
          deregisterNode(input: {nodeId: $id}) { nodeId }
          other: deregisterNode(input: {nodeId: "b"}) { nodeId }
          __typename
          ...Rest
        }
        fragment Rest on Mutation {
          deleteRoleProfile(input: $input) { name }
          recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 1}) { nodeId }
        }
        """,
        input=ROLE,
        id="a",
    )
    await record_forbidden_operation(server, "{ registry { version } __typename }")
    assert await list_entries(server.services.database) == [
        ("node.deregister", "a", "FORBIDDEN"),
        ("node.deregister", "b", "FORBIDDEN"),
        ("profile.delete", "production/worker/llm", "FORBIDDEN"),
    ]


@pytest.mark.parametrize("mutation_input", [None, 1, "x", [], {}, {"nodeId": 1}, {"nodeId": ["a"]}])
async def test_a_forbidden_operation_may_have_any_variables(
    server: LiveServer, mutation_input: object
) -> None:
    await record_forbidden_operation(server, DEREGISTER, input=mutation_input)
    await record_forbidden_operation(server, DEREGISTER)
    huge = (
        f'mutation {{ deregisterNode(input: {{nodeId: "a", note: "{"9" * 5000}"}}) {{ nodeId }} }}'
    )
    await record_forbidden_operation(server, huge)
    assert await list_entries(server.services.database) == [
        ("node.deregister", "", "FORBIDDEN"),
        ("node.deregister", "", "FORBIDDEN"),
        ("node.deregister", "a", "FORBIDDEN"),
    ]


async def test_forbidden_operations_are_recorded_except_heartbeats(
    start_server: StartServer, database: Database
) -> None:
    async with start_server(auth="required") as server:
        viewer = await create_token(database, Role.VIEWER, name="grafana")
        headers = {"authorization": f"Bearer {viewer.text}", "x-request-id": "request-1"}
        for query in (
            'mutation { deregisterNode(input: {nodeId: "a"}) { nodeId } }',
            "mutation { recordHeartbeats(inputs: []) { __typename } }",
            'mutation { createToken(input: {role: ADMIN, name: "mine"}) { key } }',
        ):
            reply = await server.http.post("/graphql", json={"query": query}, headers=headers)
            assert reply.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        anonymous = await server.http.post("/graphql", json={"query": query})
        assert anonymous.status_code == 401
    async with database.read() as session:
        page = await audit.list_entries(
            session, AuditFilter(outcome="FORBIDDEN"), first=9, after=None
        )
    assert [(e.action, e.subject, e.actor, e.address, e.request_id) for e in page.rows] == [
        ("token.create", "mine", "token/grafana", "127.0.0.1", "request-1"),
        ("node.deregister", "a", "token/grafana", "127.0.0.1", "request-1"),
    ]


async def test_a_forbidden_operation_records_few_entries(server: LiveServer) -> None:
    fields = " ".join(
        f'f{n}: deregisterNode(input: {{nodeId: "{n}"}}) {{ nodeId }}' for n in range(50)
    )
    for _ in range(3):
        await record_forbidden_operation(server, f"mutation {{ {fields} }}")
    async with server.services.database.read() as session:
        page = await audit.list_entries(session, EVERY_ENTRY, first=1000, after=None)
    assert [entry.count for entry in page.rows] == [3] * MAX_ATTEMPTS


async def test_the_audit_log_is_kept_for_the_configured_time(server: LiveServer) -> None:
    database, settings = server.services.database, server.services.settings
    insert_aged_entries = """
    INSERT INTO audit_log (recorded_at, actor, action, subject)
    SELECT now() - make_interval(days => n), 'a', 'b', n FROM unnest(ARRAY[399, 401, 800]) AS n
    """
    async with database.write() as session:
        await session.execute(text(insert_aged_entries))
    housekeeping = Housekeeping(database, settings, Metrics())
    assert await housekeeping.trim_audit_log() == 2
    assert [subject for _, subject, _ in await list_entries(database)] == ["399"]
    assert await housekeeping.trim_audit_log() == 0
