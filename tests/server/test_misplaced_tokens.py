"""A token that a caller puts anywhere but in its place gets no further than the entrance."""

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, text
from structlog.testing import capture_logs
from websockets.exceptions import ConnectionClosed

from db.core.enums import Role
from db.core.token_format import generate_token
from tests.support.live_server import LiveServer, run_server
from tests.support.tokens import create_token
from tests.support.transport_ws import open_websocket

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = generate_token().text
SECRET = TOKEN[14:46]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmF0dXJl"
NODE = {"nodeId": "gpu-1", "role": "PRODUCTION", "type": "WORKER", "bootId": "boot-1"}
REQUESTS: list[dict[str, Any]] = [
    {
        "query": "mutation Register($input: RegisterNodeInput!) { registerNode(input: $input)"
        " { node { nodeId name labels metadata profiles { name config } } } }",
        "operationName": "Register",
        "variables": {
            "input": {
                **NODE,
                "name": "n",
                "labels": ["gpu"],
                "hostname": "alpha",
                "ipAddress": "192.0.2.1",
                "capabilities": {"models": [{"name": "m"}]},
                "metadata": {"a": {"b": ["c"]}},
                "profiles": [{"name": "p", "type": "SERVICE", "config": {"k": "v"}}],
            }
        },
    },
    {
        "query": "mutation Beat($inputs: [RecordHeartbeatInput!]!) { recordHeartbeats(inputs:"
        " $inputs) { ... on HeartbeatRejected { nodeId code message } } }",
        "variables": {
            "inputs": [
                {
                    "nodeId": "gpu-1",
                    "bootId": "boot-1",
                    "sequence": 1,
                    "metrics": {"extra": {"k": "v"}, "gpus": [{"name": "g"}]},
                }
            ]
        },
    },
    {
        "query": "mutation M($input: SetMaintenanceInput!) { setMaintenance(input: $input)"
        " { node { nodeId statusReason } } }",
        "variables": {"input": {"nodeId": "gpu-1", "enabled": True, "note": "n"}},
    },
    {
        "query": "mutation D($input: DeregisterNodeInput!) { deregisterNode(input: $input)"
        " { nodeId } }",
        "variables": {"input": {"nodeId": "gpu-9", "note": "n"}},
    },
    {
        "query": "mutation P($input: SetNodeProfileInput!) { setNodeProfile(input: $input)"
        " { profile { name config } } }",
        "variables": {
            "input": {"nodeId": "gpu-1", "name": "p", "type": "LLM", "config": {"model": "m"}}
        },
    },
    {
        "query": "mutation T($input: CreateTokenInput!) { createToken(input: $input)"
        " { token { name nodes } } }",
        "variables": {"input": {"role": "AGENT", "name": "n", "nodes": ["gpu-1"]}},
    },
    {
        "query": "mutation R($input: RevokeTokenInput!) { revokeToken(input: $input)"
        " { tokens { id } } }",
        "variables": {"input": {"id": "nobody"}},
    },
    {
        "query": 'query Q($after: String, $n: Int) { nodes(filter: {labels: ["gpu"], search: "x"},'
        " first: $n, after: $after) @include(if: true) { totalCount nodes { a: nodeId } } }",
        "variables": {"n": 5, "after": None},
    },
    {
        "query": "query A($require: NodeRequirements, $rank: NodeRanking! = LEAST_LOADED)"
        " { availableNodes(require: $require, rank: $rank) { revision excluded { nodeId reasons } }"
        " }",
        "variables": {"require": {"labels": ["gpu"], "capabilities": {"k": "v"}}},
    },
    {
        "query": "{ auditLog(first: 1000) { nodes { subject actor requestId before after } } }",
        "extensions": {"persistedQuery": {"sha256Hash": "h"}},
    },
]


def list_positions(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value; one that ends with a tuple is that of a member's name."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, member in value.items():
            yield (*path, (name,))
            yield from list_positions(member, (*path, name))
    elif isinstance(value, list):
        for i, member in enumerate(value):
            yield from list_positions(member, (*path, i))


def put(value: Any, path: tuple[Any, ...], secret: str) -> Any:
    """Return the JSON with the secret at the path."""
    if not path:
        return secret
    step, rest = path[0], path[1:]
    if isinstance(step, tuple):
        return {secret if name == step[0] else name: member for name, member in value.items()}
    if isinstance(value, dict):
        return {name: put(m, rest, secret) if name == step else m for name, m in value.items()}
    return [put(m, rest, secret) if i == step else m for i, m in enumerate(value)]


def put_in_document(query: str, choice: random.Random, secret: str) -> str:
    """Return the document with the secret in place of one of its words, or next to one."""
    words = query.replace("(", " ( ").replace(")", " ) ").replace(":", " : ").split(" ")
    i = choice.randrange(len(words))
    words[i] = choice.choice(
        [
            *(
                secret,
                f"{secret}: {words[i]}",
                f'"{secret}"',
                f"${secret}",
                f"@{secret} {words[i]}",
            ),
            *(f"# {secret}\n{words[i]}", f"...{secret}", f'"""{secret}"""', f"{words[i]}{secret}"),
            *(f"x{secret}y {words[i]}", f"{secret}{secret}", f'"{"y" * 115}{secret}{"y" * 300}"'),
        ]
    )
    return " ".join(words)


def misplace(choice: random.Random, secret: str) -> dict[str, Any]:
    """Return one of the requests with the secret in it, somewhere."""
    request = choice.choice(REQUESTS)
    paths = [path for path in list_positions(request) if path not in {("query",), (("query",),)}]
    if not paths or choice.random() < 0.4:
        return {**request, "query": put_in_document(request["query"], choice, secret)}
    padding = choice.choice(["", "", "x", "y" * 115, "nrk_"])
    misplaced: dict[str, Any] = put(request, choice.choice(paths), f"{padding}{secret}{padding}")
    return misplaced


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin_server(
    shared_database_url: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[LiveServer, str]]:
    folder = tmp_path_factory.mktemp("misplaced")
    async with run_server(shared_database_url, folder, auth="required") as live:
        admin = await create_token(live.services.database, Role.ADMIN)
        yield live, f"Bearer {admin.text}"


def show(response: httpx.Response) -> str:
    return f"{response.status_code} {response.headers} {response.text}"


def escape(body: bytes) -> bytes:
    """Return the JSON with the first letter of each prefix of a token escaped."""
    return body.replace(b"nrk_", rb"\u006erk_")


async def send_by_post(server: LiveServer, admin: str, request: dict[str, Any]) -> str:
    headers = {"authorization": admin, "content-type": "application/json"}
    body = orjson.dumps(request)
    shown = [
        show(await server.http.post("/graphql", content=content, headers=headers))
        for content in (body, escape(body))
    ]
    return "\n".join(shown)


async def send_by_get(server: LiveServer, admin: str, request: dict[str, Any]) -> str:
    parameters = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in request.items()
    }
    headers = {"authorization": admin, "accept": "application/json"}
    return show(await server.http.get("/graphql", params=parameters, headers=headers))


async def send_by_event_stream(server: LiveServer, admin: str, request: dict[str, Any]) -> str:
    headers = {"authorization": admin, "accept": "text/event-stream"}
    return show(await server.http.post("/graphql", json=request, headers=headers))


async def send_by_websocket(server: LiveServer, admin: str, request: dict[str, Any]) -> str:
    headers = {"authorization": admin}
    received: list[Any] = []
    async with open_websocket(server.websocket_url, headers=headers) as client:
        await client.send({"type": "connection_init"})
        try:
            received.append(await client.receive())
            await client.send({"type": "ping", "payload": request})
            received.append(await client.receive())
            await client.send({"type": "subscribe", "id": "1", "payload": request})
            received.append(await client.receive())
            misplaced_id = json.dumps(request)[-250:]
            await client.send({"type": "subscribe", "id": misplaced_id, "payload": request})
            await client.send({"type": json.dumps(request)})
            while True:
                received.append(await client.receive())
        except ConnectionClosed as closed:
            return f"{received} {closed.rcvd}"


SENDERS: list[Callable[[LiveServer, str, dict[str, Any]], Any]] = [
    send_by_post,
    send_by_get,
    send_by_event_stream,
    send_by_websocket,
]


async def read_stored_text(server: LiveServer) -> str:
    """Return all that the registry has stored of nodes, tokens and actions."""
    tables = ("nodes", "node_profiles", "status_changes", "heartbeat_log", "tokens", "audit_log")
    async with server.services.database.read() as session:
        rows = [
            str(row)
            for table in tables
            for row in await session.scalars(text(f"SELECT t::text FROM {table} t"))  # noqa: S608
        ]
    return "\n".join(rows)


@given(choice=st.randoms(use_true_random=False), sender=st.sampled_from(SENDERS))
@settings(max_examples=150)
async def test_no_response_log_or_table_holds_a_token_from_anywhere_in_a_request(
    admin_server: tuple[LiveServer, str],
    choice: random.Random,
    sender: Callable[[LiveServer, str, dict[str, Any]], Any],
) -> None:
    server, admin = admin_server
    with capture_logs() as events:
        shown = await sender(server, admin, misplace(choice, TOKEN))
    assert SECRET not in shown
    assert SECRET not in str(events)


async def test_nothing_stored_measured_or_audited_holds_the_misplaced_token(
    admin_server: tuple[LiveServer, str],
) -> None:
    server, admin = admin_server
    choice = random.Random(7)  # noqa: S311  # it chooses positions
    for _ in range(100):
        await send_by_post(server, admin, misplace(choice, TOKEN))
    stored = await read_stored_text(server)
    assert f"{TOKEN[:14]}…" in stored
    assert SECRET not in stored
    metrics = await server.http.get("/metrics", headers={"authorization": admin})
    assert SECRET not in metrics.text


@given(choice=st.randoms(use_true_random=False), sender=st.sampled_from(SENDERS))
@settings(max_examples=100)
async def test_no_error_or_log_holds_a_jwt_from_anywhere_in_a_request(
    admin_server: tuple[LiveServer, str],
    choice: random.Random,
    sender: Callable[[LiveServer, str, dict[str, Any]], Any],
) -> None:
    """A JWT may be data: it is stored and returned as it was sent, and quoted by no error."""
    server, admin = admin_server
    with capture_logs() as events:
        shown = await sender(server, admin, misplace(choice, JWT))
    if '"data"' not in shown and "'data'" not in shown and "pong" not in shown:
        assert JWT[-10:] not in shown
    assert JWT[-10:] not in str(events)


@pytest.mark.parametrize("secret", [TOKEN, JWT], ids=["token", "JWT"])
async def test_no_response_or_log_holds_a_token_from_elsewhere_in_a_request(
    admin_server: tuple[LiveServer, str], secret: str
) -> None:
    server, admin = admin_server
    shown = []
    with capture_logs() as events:
        for name in (
            *(
                "x-request-id",
                "origin",
                "accept",
                "content-type",
                "cookie",
                "user-agent",
                "referer",
            ),
            *("traceparent", "tracestate", "x-forwarded-for", "x-forwarded-proto", "host"),
            *("access-control-request-headers", "sec-websocket-protocol", "upgrade", "expect"),
        ):
            for method in ("GET", "POST", "OPTIONS"):
                headers = {"authorization": admin, name: secret}
                shown.append(show(await server.http.request(method, "/graphql", headers=headers)))
        for authorization in (f"Bearer {secret}", f"Basic {secret}", secret, f"{secret} {secret}"):
            headers = {"authorization": authorization}
            shown.append(show(await server.http.post("/graphql", headers=headers)))
        paths = (
            *(f"/{secret}", f"/graphql/{secret}", f"/static/{secret}", f"/static/{secret}.html"),
            *(f"/dashboard/?token={secret}", f"/health/?token={secret}", f"/?{secret}"),
            *(f"/static?{secret}", f"/{quote(secret[:1])}%72k_{secret[4:]}", f"//{secret}/graphql"),
        )
        shown += [show(await server.http.get(path)) for path in paths]
        shown.append(show(await server.http.request(secret[:20], "/graphql")))
    for output in (*shown, str(events)):
        assert secret[14:46] not in output


async def test_a_field_of_the_name_of_a_token_is_reported_without_its_secret(
    admin_server: tuple[LiveServer, str],
) -> None:
    server, admin = admin_server
    request = {**REQUESTS[0], "variables": {"input": {**NODE, TOKEN: 1}}}
    response = await server.http.post("/graphql", json=request, headers={"authorization": admin})
    [error] = response.json()["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert SECRET not in response.text
