"""The limits of a query, and what a server reveals of its schema, over real sockets."""

import time
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from graph.core import validation
from graph.execution.request import MAX_VALUES
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect

INTROSPECTION = get_introspection_query()
COSTLY = "{ nodes(first: 1000) { nodes { heartbeats(first: 1000) { nodes { id } } } } }"
ALIASES = "{ " + " ".join(f"a{n}: registry {{ revision }}" for n in range(60)) + " }"
MANY = " ".join(f"x{n}: __typename" for n in range(30))
HIDDEN = (
    f"{{ ...A }} fragment A on Query {{ {MANY} ...B }}"
    f" fragment B on Query {{ {MANY.replace('x', 'y')} ...C }} fragment C on Query {{ __typename }}"
)
DIRECTIVES = "{ __typename " + "@include(if: true) " * 60 + "}"
DEEP = (
    '{ node(nodeId: "a") ' + "{ statusChanges { nodes { " * 12 + "revision" + " } } }" * 12 + " }"
)
CYCLE = "{ ...A } fragment A on Query { ...B } fragment B on Query { ...A }"


async def send_query(server: LiveServer, query: str, **variables: Any) -> httpx.Response:
    return await server.http.post("/graphql", json={"query": query, "variables": variables})


@pytest.mark.parametrize(
    ("query", "exceeded"),
    [(COSTLY, "cost"), (ALIASES, "aliases"), (HIDDEN, "aliases")],
    ids=["cost", "aliases", "hidden aliases"],
)
async def test_query_over_a_limit_is_rejected_with_the_limit_and_its_value(
    server: LiveServer, query: str, exceeded: str
) -> None:
    response = await send_query(server, query)
    assert response.status_code == 400
    [error] = response.json()["errors"]
    extensions = error["extensions"]
    assert (extensions["code"], extensions["exceeded"]) == ("QUERY_TOO_COMPLEX", exceeded)
    assert extensions[exceeded] > extensions["limit"]
    assert str(extensions["limit"]) in error["message"]
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", query)
        message = await client.receive()
    assert message["type"] == "error"
    assert message["payload"][0]["extensions"]["code"] == "QUERY_TOO_COMPLEX"


@pytest.mark.parametrize(
    "query",
    [
        DIRECTIVES,
        DEEP,
        CYCLE,
        "{ " + "a { " * 5000,
        "{ " + "registry { revision } " * 5000 + "}",
        "[" * 100_000,
        '{ node(nodeId: "' + "x" * 200_000 + '") { id } }',
        "{ nodes(filter: {" + " ".join(f"a{n}: 1" for n in range(5000)) + "}) { totalCount } }",
    ],
    ids=["directives", "deep", "cycle", "open", "long", "brackets", "text", "fields"],
)
async def test_hostile_document_is_rejected_quickly(server: LiveServer, query: str) -> None:
    began = time.perf_counter()
    response = await send_query(server, query)
    assert time.perf_counter() - began < 5  # it takes milliseconds; a busy machine is slower
    assert response.status_code in {200, 400}
    codes = {error["extensions"]["code"] for error in response.json()["errors"]}
    assert codes <= {"BAD_INPUT", "QUERY_TOO_COMPLEX"}


async def test_page_size_in_a_variable_counts_for_the_cost(server: LiveServer) -> None:
    query = (
        "query ($n: Int) { nodes(first: $n) { nodes { heartbeats(first: $n) { nodes { id } } } } }"
    )
    assert "errors" not in (await send_query(server, query, n=10)).json()
    rejected = (await send_query(server, query, n=1000)).json()
    assert rejected["errors"][0]["extensions"]["code"] == "QUERY_TOO_COMPLEX"


BATCH = (
    "mutation ($inputs: [RecordHeartbeatInput!]!) { recordHeartbeats(inputs: $inputs) {"
    " ... on HeartbeatRejected { code } } }"
)
GPU = {
    "name": "a",
    "utilizationPercent": 9,
    "memoryTotalMb": 9,
    "memoryFreeMb": 9,
    "temperatureCelsius": 9,
}
FULL = {
    "nodeId": "a",
    "bootId": "b",
    "sequence": 1,
    "status": "ONLINE",
    "metrics": {
        "cpuPercent": 1,
        "memoryPercent": 1,
        "memoryAvailableMb": 1,
        "diskPercent": 1,
        "loadAverage": 1,
        "gpus": [GPU, GPU],
        "extra": {"uptimeSeconds": 1, "temperature": 2, "fans": [1, 2]},
    },
}


def count_values(value: object) -> int:
    children = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    )
    return 1 + sum(map(count_values, children))


async def test_request_with_too_many_values_is_rejected_before_validation(
    server: LiveServer,
) -> None:
    request: dict[str, Any] = {"query": BATCH, "variables": {"inputs": []}}
    junk = [0] * (MAX_VALUES - count_values(request))
    request["variables"]["inputs"] = junk
    accepted = await server.http.post("/graphql", json=request)
    assert "Variable '$inputs'" in accepted.json()["errors"][0]["message"]
    junk.append(0)
    rejected = await server.http.post("/graphql", json=request)
    assert rejected.status_code == 400
    [error] = rejected.json()["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["message"] == f"body: must have at most {MAX_VALUES} values"
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", BATCH, inputs=junk)
        assert await client.wait_for_close() == (
            4400,
            f"Messages must have at most {MAX_VALUES} values",
        )


async def test_largest_batch_of_full_heartbeats_is_within_the_limit(server: LiveServer) -> None:
    batch = [FULL] * validation.MAX_BATCH_SIZE
    assert count_values(batch) < MAX_VALUES
    response = await send_query(server, BATCH, inputs=batch)
    results = response.json()["data"]["recordHeartbeats"]
    assert results == [{"code": "NODE_NOT_FOUND"}] * validation.MAX_BATCH_SIZE


async def test_development_server_shows_its_schema_and_graphiql(server: LiveServer) -> None:
    assert (await send_query(server, INTROSPECTION)).json()["data"]["__schema"]
    page = await server.http.get("/graphql", headers={"accept": "text/html"})
    assert "GraphiQL" in page.text
    response_text = (await send_query(server, "{ regisrty { revision } }")).text
    assert "Did you mean" in response_text


async def test_production_server_shows_schema_and_graphiql_only_if_configured(
    start_server: StartServer,
) -> None:
    async with start_server(env="production", auth="off") as server:
        for query, variables in (
            (INTROSPECTION, {}),
            ("{ regisrty { revision } }", {}),
            ("query ($f: NodeFilter) { nodes(filter: $f) { totalCount } }", {"f": {"lables": 1}}),
        ):
            response = await send_query(server, query, **variables)
            assert response.json()["errors"][0]["extensions"]["code"] == "BAD_INPUT"
            assert "Did you mean" not in response.text
            assert "data" not in response.json()
        page = await server.http.get("/graphql", headers={"accept": "text/html"})
        assert "GraphiQL" not in page.text
    async with start_server(
        env="production", auth="off", introspection=True, graphiql=True
    ) as server:
        assert (await send_query(server, INTROSPECTION)).json()["data"]["__schema"]
        page = await server.http.get("/graphql", headers={"accept": "text/html"})
        assert "GraphiQL" in page.text
