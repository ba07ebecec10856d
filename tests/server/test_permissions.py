"""The permissions of each field of the schema, tested over a real socket."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from graphql import GraphQLObjectType, is_introspection_type, parse, validate
from sqlalchemy import URL

from db.access import enrolment, token_changes
from db.core.enums import Role
from graph.api.schema import schema
from tests.support.live_server import LiveServer, run_server
from tests.support.tokens import ADMIN

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYBODY = set(Role)
READERS = {Role.ROUTER, Role.VIEWER, Role.OPERATOR, Role.ADMIN}
OPERATORS = {Role.OPERATOR, Role.ADMIN}
ADMINS = {Role.ADMIN}
NODE_WRITERS = {Role.AGENT, Role.ADMIN}

PROFILE = 'name: "p", expectedVersion: 9'
OF_NODE = f'nodeId: "own", {PROFILE}'
OF_ROLE = f"role: BACKUP, type: WORKER, {PROFILE}"
NODE = 'role: BACKUP, type: WORKER, bootId: "b"'
BEAT = 'nodeId: "own", bootId: "b", sequence: 1'

# Each field of the root types: the roles that may use it, and an operation.
ROOTS: dict[str, tuple[set[Role], str]] = {
    "Query.registry": (EVERYBODY, "{ registry { version } }"),
    "Query.node": (READERS | {Role.AGENT}, '{ node(nodeId: "own") { nodeId } }'),
    "Query.nodes": (READERS, "{ nodes { totalCount } }"),
    "Query.availableNodes": (READERS, "{ availableNodes { revision } }"),
    "Query.roleProfiles": (READERS, "{ roleProfiles { id } }"),
    "Query.statusChanges": (READERS, "{ statusChanges { nodes { revision } } }"),
    "Mutation.registerNode": (
        {*NODE_WRITERS, Role.ENROLMENT},
        f"mutation {{ registerNode(input: {{{NODE}}}) {{ created }} }}",
    ),
    "Mutation.recordHeartbeat": (
        NODE_WRITERS,
        f"mutation {{ recordHeartbeat(input: {{{BEAT}}}) {{ status }} }}",
    ),
    "Mutation.recordHeartbeats": (
        NODE_WRITERS,
        f"mutation {{ recordHeartbeats(inputs: [{{{BEAT}}}]) {{ __typename }} }}",
    ),
    "Mutation.setMaintenance": (
        OPERATORS,
        'mutation { setMaintenance(input: {nodeId: "own", enabled: false}) { node { nodeId } } }',
    ),
    "Mutation.deregisterNode": (
        OPERATORS,
        'mutation { deregisterNode(input: {nodeId: "gone"}) { nodeId } }',
    ),
    "Mutation.setNodeProfile": (
        OPERATORS,
        (
            f"mutation {{ setNodeProfile(input: {{{OF_NODE}, type: LLM, config: {{}}}})"
            " { profile { id } } }"
        ),
    ),
    "Mutation.deleteNodeProfile": (
        OPERATORS,
        f"mutation {{ deleteNodeProfile(input: {{{OF_NODE}}}) {{ name }} }}",
    ),
    "Mutation.setRoleProfile": (
        OPERATORS,
        (
            f"mutation {{ setRoleProfile(input: {{{OF_ROLE}, profileType: LLM, config: {{}}}})"
            " { profile { id } } }"
        ),
    ),
    "Mutation.deleteRoleProfile": (
        OPERATORS,
        f"mutation {{ deleteRoleProfile(input: {{{OF_ROLE}}}) {{ name }} }}",
    ),
    "Query.auditLog": (ADMINS, "{ auditLog { nodes { id } } }"),
    "Query.tokens": (ADMINS, "{ tokens { nodes { id } } }"),
    "Mutation.createToken": (
        ADMINS,
        'mutation { createToken(input: {role: VIEWER, name: "v"}) { key } }',
    ),
    "Mutation.createEnrolmentToken": (
        ADMINS,
        "mutation { createEnrolmentToken(input: {uses: 1, expiresInSeconds: 60}) { key } }",
    ),
    "Mutation.rotateToken": (
        ADMINS,
        'mutation { rotateToken(input: {id: "nothing"}) { key } }',
    ),
    "Mutation.revokeToken": (
        ADMINS,
        'mutation { revokeToken(input: {id: "nothing"}) { tokens { id } } }',
    ),
    "Mutation.rotateNodeKey": (
        {Role.AGENT},
        "mutation { rotateNodeKey { keyExpiresAt } }",
    ),
    "Subscription.nodeStatusChanges": (
        READERS,
        "subscription { nodeStatusChanges(after: 999) { __typename } }",
    ),
    "Subscription.availableNodesChanges": (
        READERS,
        "subscription { availableNodesChanges { __typename } }",
    ),
    "Subscription.heartbeats": (
        READERS | {Role.AGENT},
        'subscription { heartbeats(nodeId: "own") { id } }',
    ),
    "Subscription.heartbeatPace": (
        EVERYBODY,
        "subscription { heartbeatPace { __typename } }",
    ),
}

# The fields of other types. They are open to each role that may use a root field that leads there.
BELOW = {
    "AuditEntry": "id recordedAt lastRecordedAt count actor address peerAddress action subject"
    " outcome requestId before after",
    "AuditEntryEdge": "cursor node",
    "AuditLogConnection": "edges nodes pageInfo",
    "AvailableNodes": "candidates excluded revision observedAt",
    "AvailableNodesSnapshot": "revision nodes",
    "Bookmark": "revision",
    "CreateTokenPayload": "key token",
    "DeleteNodeProfilePayload": "name",
    "DeleteRoleProfilePayload": "name",
    "DeregisterNodePayload": "nodeId revision",
    "EffectiveProfile": "name type config fromRole fromNode",
    "GpuMetrics": "name utilizationPercent memoryTotalMb memoryFreeMb temperatureCelsius",
    "Heartbeat": "id nodeId receivedAt status metrics",
    "HeartbeatConnection": "edges nodes pageInfo",
    "HeartbeatEdge": "cursor node",
    "HeartbeatPace": "intervalSeconds",
    "HeartbeatRejected": "nodeId code message retryAfterSeconds",
    "MetricRange": "min avg max",
    "MetricsHour": "startsAt heartbeats cpuPercent memoryPercent memoryAvailableMb diskPercent"
    " loadAverage gpuUtilizationPercent gpuMemoryFreeMb gpuTemperatureCelsius",
    "MetricsHourConnection": "edges nodes pageInfo",
    "MetricsHourEdge": "cursor node",
    "Node": "id nodeId name role type labels ipAddress localIp hostname status statusReason"
    " statusSince lastHeartbeat registeredAt updatedAt capabilities metadata metrics profiles"
    " effectiveProfiles heartbeats metricsHistory statusChanges availability",
    "NodeBecameAvailable": "revision node",
    "NodeBecameUnavailable": "revision nodeId reasons",
    "NodeCandidate": "node score",
    "NodeConnection": "edges nodes pageInfo totalCount revision",
    "NodeCounts": "total online degraded offline maintenance",
    "NodeEdge": "cursor node",
    "NodeExclusion": "nodeId reasons",
    "NodeMetrics": "cpuPercent memoryPercent memoryAvailableMb diskPercent loadAverage gpus extra",
    "NodeProfile": "id name type config enabled version createdAt updatedAt",
    "NodeStatusChanged": "change node",
    "PageInfo": "hasNextPage hasPreviousPage startCursor endCursor",
    "RecordHeartbeatPayload": "nodeId status receivedAt nextHeartbeatInSeconds metricsStored",
    "RegisterNodePayload": "node created nextHeartbeatInSeconds key keyExpiresAt",
    "Registry": "version environment mode modeReason modeSince revision startedAt nodeCounts",
    "ResyncRequired": "revision reason",
    "RevokeTokenPayload": "tokens",
    "RotateNodeKeyPayload": "key keyExpiresAt",
    "RoleProfile": "id role type name profileType config enabled version createdAt updatedAt",
    "SetMaintenancePayload": "node",
    "SetNodeProfilePayload": "profile",
    "SetRoleProfilePayload": "profile",
    "StatusChange": "revision nodeId previousStatus status reason note actor changedAt",
    "StatusChangeConnection": "edges nodes pageInfo",
    "StatusChangeEdge": "cursor node",
    "Token": "id name role nodes createdAt createdBy expiresAt revokedAt lastUsedAt usesLeft"
    " nodeRole nodeType labels",
    "TokenConnection": "edges nodes pageInfo",
    "TokenEdge": "cursor node",
}


@dataclass(frozen=True)
class ServerWithTokens:
    """A server that requires authentication, and a token of each role."""

    server: LiveServer
    tokens: dict[Role, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server_with_tokens(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerWithTokens]:
    folder = tmp_path_factory.mktemp("keyed")
    async with (
        run_server(shared_database_url, folder, auth="required", keepalive_seconds=0.1) as server,
        server.services.database.write() as session,
    ):
        tokens = {}
        for role in Role:
            if role is Role.ENROLMENT:
                issued = await enrolment.create_enrolment_token(
                    session, uses=9, valid_for=timedelta(days=1), caller=ADMIN
                )
            else:
                issued = await token_changes.create_token(
                    session,
                    role=role,
                    lifetime=None,
                    caller=ADMIN,
                    nodes=["own"] if role is Role.AGENT else [],
                )
            tokens[role] = issued.text
        await session.commit()
        yield ServerWithTokens(server, tokens)


async def find_error_code(
    server_with_tokens: ServerWithTokens, role: Role | None, query: str
) -> tuple[int, str | None]:
    """Return the status of a response or stream, and the code of its first error."""
    headers = {} if role is None else {"authorization": f"Bearer {server_with_tokens.tokens[role]}"}
    if query.startswith("subscription"):
        headers["accept"] = "text/event-stream"
    async with server_with_tokens.server.http.stream(
        "POST", "/graphql", json={"query": query}, headers=headers
    ) as response:
        if response.headers["content-type"].startswith("text/event-stream"):
            text = await anext(response.aiter_text())
        else:
            text = (await response.aread()).decode()
    for code in ("FORBIDDEN", "UNAUTHENTICATED"):
        if f'"code":"{code}"' in text:
            return response.status_code, code
    return response.status_code, None


async def test_each_field_of_the_schema_is_in_the_table() -> None:
    roots: set[str] = set()
    below: dict[str, set[str]] = {}
    for name, graphql_type in schema.graphql.type_map.items():
        if not isinstance(graphql_type, GraphQLObjectType) or is_introspection_type(graphql_type):
            continue
        if name in {"Query", "Mutation", "Subscription"}:
            roots |= {f"{name}.{field}" for field in graphql_type.fields}
        else:
            below[name] = set(graphql_type.fields)
    assert roots == set(ROOTS)
    assert below == {name: set(fields.split()) for name, fields in BELOW.items()}


async def test_each_description_lists_the_roles() -> None:
    for row, (roles, _) in ROOTS.items():
        root, _, name = row.partition(".")
        graphql_type = schema.graphql.type_map[root]
        assert isinstance(graphql_type, GraphQLObjectType)
        description = graphql_type.fields[name].description or ""
        assert roles == EVERYBODY if "All roles." in description else "Roles: " in description
        role_names = description.rpartition("oles: ")[2]
        assert roles == EVERYBODY or {role for role in Role if role in role_names} == roles


@pytest.mark.parametrize("row", ROOTS)
async def test_a_field_is_forbidden_to_roles_that_the_table_does_not_list(
    server_with_tokens: ServerWithTokens, row: str
) -> None:
    roles, query = ROOTS[row]
    assert not validate(schema.graphql, parse(query))
    for role in Role:
        # The node of this run has a token already, so that it could not enrol.
        operation_of_role = query.replace('"b"', '"c"') if role is Role.ENROLMENT else query
        status, code = await find_error_code(server_with_tokens, role, operation_of_role)
        assert code == (None if role in roles else "FORBIDDEN"), role
        if code and not query.startswith("subscription"):
            assert status == 403
    assert await find_error_code(server_with_tokens, None, query) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "query",
    [
        "{ registry { version } ...Hidden } fragment Hidden on Query { nodes { totalCount } }",
        "{ registry { version } ... on Query { x: nodes { totalCount } } }",
        (
            "{ registry { version } ... { ...A } } fragment A on Query { ...B }"
            " fragment B on Query { nodes @skip(if: true) { totalCount } }"
        ),
        "query A { registry { version } } query B { nodes { totalCount } }",
    ],
)
async def test_a_field_is_forbidden_wherever_an_operation_hides_it(
    server_with_tokens: ServerWithTokens, query: str
) -> None:
    headers = {"authorization": f"Bearer {server_with_tokens.tokens[Role.AGENT]}"}
    operation = "B" if "query B" in query else None
    body = {"query": query, "operationName": operation}
    response = await server_with_tokens.server.http.post("/graphql", json=body, headers=headers)
    assert response.status_code == 403
    [error] = response.json()["errors"]
    assert error["extensions"]["code"] == "FORBIDDEN"
    assert error["extensions"]["field"] == "nodes"


OF_ANOTHER = {
    "query": '{ node(nodeId: "other") { nodeId } }',
    "register": f'mutation {{ registerNode(input: {{nodeId: "other", {NODE}}}) {{ created }} }}',
    "beat": "mutation { recordHeartbeat(input: {"
    + BEAT.replace('"own"', '"other"')
    + "}) { status } }",
    "follow": 'subscription { heartbeats(nodeId: "other") { id } }',
}


@pytest.mark.parametrize("query", OF_ANOTHER.values(), ids=OF_ANOTHER)
async def test_an_agent_acts_for_its_own_node_only(
    server_with_tokens: ServerWithTokens, query: str
) -> None:
    assert (await find_error_code(server_with_tokens, Role.AGENT, query))[1] == "FORBIDDEN"
    assert (await find_error_code(server_with_tokens, Role.ADMIN, query))[1] is None


async def test_a_batch_rejects_heartbeats_of_other_nodes_and_accepts_the_rest(
    server_with_tokens: ServerWithTokens,
) -> None:
    http, headers = (
        server_with_tokens.server.http,
        {"authorization": f"Bearer {server_with_tokens.tokens[Role.AGENT]}"},
    )

    async def execute(query: str) -> Any:
        response: httpx.Response = await http.post(
            "/graphql", json={"query": query}, headers=headers
        )
        return response.json()["data"]

    await execute(f"mutation {{ registerNode(input: {{{NODE}}}) {{ node {{ nodeId }} }} }}")
    beats = ", ".join(
        f'{{nodeId: "{node}", bootId: "b", sequence: 5}}' for node in ("other", "own")
    )
    data = await execute(
        f"mutation {{ recordHeartbeats(inputs: [{beats}]) {{"
        " ... on HeartbeatRejected { nodeId code } ... on RecordHeartbeatPayload { nodeId status }"
        " } }"
    )
    assert data["recordHeartbeats"] == [
        {"nodeId": "other", "code": "FORBIDDEN"},
        {"nodeId": "own", "status": "ONLINE"},
    ]
