"""GraphQL over HTTP: valid requests are answered, invalid ones are rejected in GraphQL's format."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import text
from structlog.types import EventDict

from tests.support.api import beat, register, wait_until_connected
from tests.support.live_server import LiveServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("logged")]

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
TYPENAME = "{ __typename }"
MEGABYTE = b" " * 1024 * 1024


async def send_request(
    server: LiveServer, method: str = "POST", *, accept: str | None = None, **options: Any
) -> httpx.Response:
    """Send a request, without an Accept header unless one is passed."""
    request = server.http.build_request(method, "/graphql", **options)
    if "accept" not in httpx.Headers(options.get("headers")):
        del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    return await server.http.send(request)


def check_rejection(
    response: httpx.Response, status: int, *, field: str | None = None, media_type: str = JSON
) -> dict[str, Any]:
    """Check that the response rejects its request before execution; return its only error."""
    assert response.status_code == status
    assert response.headers["content-type"] == f"{media_type}; charset=utf-8"
    body = response.json()
    assert "data" not in body
    [error] = body["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["extensions"]["retryable"] is False
    assert error["extensions"]["requestId"] == response.headers["x-request-id"]
    assert error["extensions"].get("field") == field
    message: str = error["message"]
    assert message
    assert not re.search(r"codec|pydantic|GraphQLRequest|Error\(|object at 0x", message)
    return dict(error)


@dataclass(frozen=True)
class Audit:
    """An audit of graphql-http: the request to send and the response to expect."""

    id: str
    name: str
    body: Any = None
    accept: str | None = None
    method: str = "POST"
    content_type: str | None = JSON
    status: range = range(200, 201)
    media_type: str | None = None
    without: str | None = None

    @property
    def content(self) -> bytes | None:
        return self.body if isinstance(self.body, bytes | None) else orjson.dumps(self.body)


QUERY = {"query": TYPENAME}
TYPE = {
    "query": "query Type($name: String!) { __type(name: $name) { name } }",
    "variables": {"name": "sometype"},
}
COERCE_FAILURE = {
    "query": "query CoerceFailure($id: ID!){ __typename }",
    "variables": {"id": None},
}
UNKNOWN_FIELD = {"query": "{ 8f31403dfe404bccbb0e835f2629c6a7 }"}
BAD_REQUEST = range(400, 401)
CLIENT_ERROR = range(400, 500)
ANY_ERROR = range(400, 600)

# The audits of the npm package graphql-http 1.22, src/audits/server.ts, in its order.
AUDITS = [
    Audit(
        "22EB",
        "SHOULD accept application/graphql-response+json and match the content-type",
        QUERY,
        GRAPHQL_RESPONSE,
        media_type=GRAPHQL_RESPONSE,
    ),
    Audit(
        "4655",
        "MUST accept application/json and match the content-type",
        QUERY,
        JSON,
        media_type=JSON,
    ),
    Audit(
        "47DE",
        "SHOULD accept */* and use application/json for the content-type",
        QUERY,
        "*/*",
        media_type=JSON,
    ),
    Audit(
        "80D8",
        "SHOULD assume application/json content-type when accept is missing",
        QUERY,
        media_type=JSON,
    ),
    Audit("82A3", "MUST use utf-8 encoding when responding", QUERY),
    Audit(
        "BF61",
        "MUST accept utf-8 encoded request",
        {"query": '{ __type(name: "Run🏃Swim🏊") { name } }'},
        content_type="application/json; charset=utf-8",
    ),
    Audit("78D5", "MUST assume utf-8 in request if encoding is unspecified", QUERY),
    Audit("2C94", "MUST accept POST requests", QUERY),
    Audit(
        "5A70",
        "MAY accept application/x-www-form-urlencoded formatted GET requests",
        QUERY,
        method="GET",
    ),
    Audit(
        "9C48",
        "MAY NOT allow executing mutations on GET requests",
        {"query": "mutation { __typename }"},
        GRAPHQL_RESPONSE,
        method="GET",
        status=CLIENT_ERROR,
    ),
    Audit(
        "9ABE",
        "SHOULD respond with 4xx status code if content-type is not supplied on POST requests",
        QUERY,
        content_type=None,
        status=CLIENT_ERROR,
    ),
    Audit("03D4", "MUST accept application/json POST requests", QUERY),
    Audit(
        "A5BF", "MAY use 400 status code when request body is missing on POST", status=BAD_REQUEST
    ),
    Audit(
        "423L",
        "MAY use 400 status code on missing {query} parameter",
        {"notquery": TYPENAME},
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
    ),
    *(
        Audit(
            f"LKJ{i}",
            f"MAY use 400 status code on {kind} query parameter",
            {"query": invalid},
            status=BAD_REQUEST,
        )
        for i, (kind, invalid) in enumerate(
            [("object", {"obj": "ect"}), ("number", 0), ("boolean", False), ("array", ["array"])]
        )
    ),
    Audit(
        "34A2",
        "SHOULD allow string {query} parameter when accepting application/graphql-response+json",
        QUERY,
        GRAPHQL_RESPONSE,
    ),
    Audit(
        "13EE",
        "MUST allow string {query} parameter when accepting application/json",
        QUERY,
        JSON,
        without="errors",
    ),
    *(
        Audit(
            f"6C0{i}",
            f"MAY use 400 status code on {kind} operationName parameter",
            QUERY | {"operationName": invalid},
            status=BAD_REQUEST,
        )
        for i, (kind, invalid) in enumerate(
            [("object", {"obj": "ect"}), ("number", 0), ("boolean", False), ("array", ["array"])]
        )
    ),
    Audit(
        "8161",
        "SHOULD allow string {operationName} when accepting application/graphql-response+json",
        {"operationName": "Query", "query": "query Query { __typename }"},
        GRAPHQL_RESPONSE,
    ),
    Audit(
        "B8B3",
        "MUST allow string {operationName} parameter when accepting application/json",
        {"operationName": "Query", "query": "query Query { __typename }"},
        JSON,
        without="errors",
    ),
    *(
        Audit(
            f"{prefix}{i}",
            f"{must} allow null {parameter} parameter when accepting {accept}",
            QUERY | {parameter: None},
            accept,
            without="errors",
        )
        for i, parameter in enumerate(["variables", "operationName", "extensions"])
        for prefix, must, accept in [("94B", "SHOULD", GRAPHQL_RESPONSE), ("022", "MUST", JSON)]
    ),
    *(
        Audit(
            f"476{i}",
            f"MAY use 400 status code on {kind} variables parameter",
            QUERY | {"variables": invalid},
            status=BAD_REQUEST,
        )
        for i, (kind, invalid) in enumerate(
            [("string", "string"), ("number", 0), ("boolean", False), ("array", ["array"])]
        )
    ),
    Audit(
        "2EA1",
        "SHOULD allow map {variables} when accepting application/graphql-response+json",
        TYPE,
        GRAPHQL_RESPONSE,
    ),
    Audit(
        "28B9",
        "MUST allow map {variables} parameter when accepting application/json",
        TYPE,
        JSON,
        without="errors",
    ),
    Audit(
        "D6D5",
        "MAY allow URL-encoded JSON string {variables} in GETs for graphql-response+json",
        TYPE,
        GRAPHQL_RESPONSE,
        method="GET",
        without="errors",
    ),
    Audit(
        "6A70",
        "MAY allow URL-encoded JSON string {variables} in GETs for application/json",
        TYPE,
        JSON,
        method="GET",
        without="errors",
    ),
    *(
        Audit(
            f"58B{i}",
            f"MAY use 400 status code on {kind} extensions parameter",
            QUERY | {"extensions": invalid},
            status=BAD_REQUEST,
        )
        for i, (kind, invalid) in enumerate(
            [("string", "string"), ("number", 0), ("boolean", False), ("array", ["array"])]
        )
    ),
    Audit(
        "428F",
        "SHOULD allow map {extensions} when accepting application/graphql-response+json",
        QUERY | {"extensions": {"some": "value"}},
        GRAPHQL_RESPONSE,
    ),
    Audit(
        "1B7A",
        "MUST allow map {extensions} parameter when accepting application/json",
        QUERY | {"extensions": {"some": "value"}},
        JSON,
        without="errors",
    ),
    Audit(
        "B6DC",
        "MAY use 2xx, 4xx, or 5xx on JSON parsing failure when accepting application/json",
        b'{ "not a JSON',
        JSON,
        status=range(200, 600),
    ),
    Audit(
        "BCF8",
        "SHOULD use 400 on JSON parsing failure when accepting application/json",
        b'{ "not a JSON',
        JSON,
        status=BAD_REQUEST,
    ),
    Audit(
        "B7N8",
        "SHOULD use 400 on JSON parsing failure when accepting graphql-response+json",
        b'{ "not a JSON',
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
    ),
    Audit(
        "8764",
        "MAY use 4xx or 5xx status codes if parameters are invalid",
        {"qeury": TYPENAME},
        status=ANY_ERROR,
    ),
    Audit(
        "3E3A",
        "MAY use 400 status code if parameters are invalid",
        {"qeury": TYPENAME},
        status=BAD_REQUEST,
    ),
    Audit(
        "572B",
        "SHOULD use 200 on document parsing failure when accepting application/json",
        {"query": "{"},
        JSON,
    ),
    Audit(
        "FDE2",
        "SHOULD use 200 on document validation failure when accepting application/json",
        UNKNOWN_FIELD,
        JSON,
    ),
    Audit(
        "7B9B",
        "SHOULD use 200 on variable coercion failure when accepting application/json",
        COERCE_FAILURE,
        JSON,
    ),
    Audit(
        "865D",
        "SHOULD use 4xx or 5xx on document parsing failure for graphql-response+json",
        {"query": "{"},
        GRAPHQL_RESPONSE,
        status=ANY_ERROR,
    ),
    Audit(
        "556A",
        "SHOULD use 400 on document parsing failure for graphql-response+json",
        {"query": "{"},
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
    ),
    Audit(
        "D586",
        "SHOULD not contain data on document parsing failure for graphql-response+json",
        {"query": "{"},
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
        without="data",
    ),
    Audit(
        "51FE",
        "SHOULD use 4xx or 5xx on document validation failure for graphql-response+json",
        UNKNOWN_FIELD,
        GRAPHQL_RESPONSE,
        status=ANY_ERROR,
    ),
    Audit(
        "74FF",
        "SHOULD use 400 on document validation failure for graphql-response+json",
        UNKNOWN_FIELD,
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
    ),
    Audit(
        "5E5B",
        "SHOULD not contain data on document validation failure for graphql-response+json",
        UNKNOWN_FIELD,
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
        without="data",
    ),
    Audit(
        "86EE",
        "SHOULD use 400 on variable coercion failure for graphql-response+json",
        COERCE_FAILURE,
        GRAPHQL_RESPONSE,
        status=BAD_REQUEST,
    ),
]


async def test_every_audit_is_present_once() -> None:
    assert len({audit.id for audit in AUDITS}) == len(AUDITS) == 61


@pytest.mark.parametrize(
    "audit", [pytest.param(audit, id=f"{audit.id} {audit.name}") for audit in AUDITS]
)
async def test_server_passes_the_audit(shared_server: LiveServer, audit: Audit) -> None:
    if audit.method == "GET":
        parameters = {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in audit.body.items()
        }
        response = await send_request(shared_server, "GET", accept=audit.accept, params=parameters)
    else:
        headers = {"content-type": audit.content_type} if audit.content_type else {}
        response = await send_request(
            shared_server, accept=audit.accept, content=audit.content, headers=headers
        )
    assert response.status_code in audit.status
    if audit.media_type:
        assert audit.media_type in response.headers["content-type"]
    body = orjson.loads(response.content)  # it rejects what is not UTF-8
    assert audit.without not in body
    assert body.keys() <= {"data", "errors"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'"foo"', id="a string"),
        pytest.param(b"1", id="a number"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="an empty array"),
        pytest.param(b'[{"query": "{ __typename }"}]', id="a batch"),
        pytest.param(b'{"query": "\xff\xfe"}', id="invalid UTF-8"),
        pytest.param('{"query": "{ __typename }"}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + b'{"query": "{ __typename }"}', id="a byte order mark"),
        pytest.param(b"[" * 100_000, id="100,000 open arrays"),
        pytest.param(b'{"query": ' * 100_000, id="100,000 open objects"),
        pytest.param(b"[" * 950 + b"1234567890123456789012" + b"]" * 950, id="deep and long"),
        pytest.param(b'{"query": NaN}', id="NaN"),
        pytest.param(b'{"x": ' + b"9" * 5000 + b"}", id="a number of 5,000 digits"),
        pytest.param(rb'{"query": "\ud800"}', id="half a surrogate pair"),
        pytest.param(b'{"query": "{ __typename }"} x', id="something behind it"),
    ],
)
async def test_body_that_is_not_a_json_object_is_rejected(
    shared_server: LiveServer, body: bytes
) -> None:
    for accept in (JSON, GRAPHQL_RESPONSE):
        response = await send_request(
            shared_server, accept=accept, content=body, headers={"content-type": JSON}
        )
        check_rejection(response, 400, field="body", media_type=accept)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({}, "query"),
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": TYPENAME, "operationName": 1}, "operationName"),
        ({"query": TYPENAME, "variables": "{}"}, "variables"),
        ({"query": TYPENAME, "variables": [{}]}, "variables"),
        ({"query": TYPENAME, "extensions": 1}, "extensions"),
        ({"query": TYPENAME, "operationName": "Other"}, "operationName"),
        ({"query": TYPENAME, "operationName": ""}, "operationName"),
        ({"query": "fragment F on Query { __typename }"}, "query"),
        ({"query": "type A { a: Int }"}, "query"),
    ],
)
async def test_invalid_parameter_is_rejected_and_named(
    shared_server: LiveServer, parameters: dict[str, Any], field: str
) -> None:
    for accept in (JSON, GRAPHQL_RESPONSE):
        response = await send_request(shared_server, accept=accept, json=parameters)
        check_rejection(response, 400, field=field, media_type=accept)


async def test_subscription_over_http_is_rejected_with_a_hint_to_the_websocket(
    shared_server: LiveServer,
) -> None:
    query = {"query": "subscription { nodeStatusChanges { __typename } }"}
    for response in (
        await send_request(shared_server, json=query),
        await send_request(shared_server, "GET", params=query),
    ):
        assert "websocket" in check_rejection(response, 400)["message"]


@pytest.mark.parametrize(
    "query",
    [
        "query A { a: __typename } query B { b: __typename }",
        "query A { a: __typename } mutation B { __typename }",
        "{ a: __typename } { b: __typename }",
    ],
)
async def test_document_of_several_operations_runs_only_the_named_one(
    shared_server: LiveServer, query: str
) -> None:
    for _ in range(2):  # the second time the document comes out of the cache
        response = await send_request(shared_server, accept=GRAPHQL_RESPONSE, json={"query": query})
        check_rejection(response, 400, field="operationName", media_type=GRAPHQL_RESPONSE)
        if "query B" in query:
            named_response = await send_request(
                shared_server, json={"query": query, "operationName": "B"}
            )
            assert named_response.json() == {"data": {"b": "Query"}}


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("{", id="syntax"),
        pytest.param(" ", id="a space"),
        pytest.param("\0", id="NUL"),
        pytest.param("{ nodes }", id="no selection"),
        pytest.param("{ node(nodeId: " + "[" * 1900 + "]" * 1900 + ") { id } }", id="deep list"),
        pytest.param("{a" * 1900 + "}" * 1900, id="deep selection"),
        pytest.param(f"query ($a: {'[' * 1900}Int{']' * 1900}) {TYPENAME}", id="deep type"),
        pytest.param("{" + " a" * 5000 + "}", id="too many tokens"),
        pytest.param("{ ...F } fragment F on Query { ...F }", id="a fragment within itself"),
        pytest.param(
            "{ ...F0 } fragment F480 on Query { __typename } "
            + " ".join(f"fragment F{i} on Query {{ ...F{i + 1} }}" for i in range(480)),
            id="a long chain of fragments",
        ),
        pytest.param(
            "{ __schema { types" + " { fields { type" * 30 + " { name }" + " } }" * 30 + " } }",
            id="deep introspection",
        ),
    ],
)
async def test_invalid_document_is_rejected_before_execution(
    shared_server: LiveServer, query: str
) -> None:
    response = await send_request(shared_server, accept=GRAPHQL_RESPONSE, json={"query": query})
    check_rejection(response, 400, media_type=GRAPHQL_RESPONSE)
    json_response = await send_request(shared_server, json={"query": query})
    check_rejection(json_response, 200)


async def test_mutation_over_get_is_rejected(shared_server: LiveServer) -> None:
    response = await send_request(
        shared_server,
        "GET",
        params={"query": 'mutation { deregisterNode(input: {nodeId: "x"}) { nodeId } }'},
    )
    check_rejection(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_other_methods_get_the_allowed_ones(shared_server: LiveServer, method: str) -> None:
    response = await send_request(shared_server, method)
    check_rejection(response, 405)
    assert response.headers["allow"] == "GET, POST"


async def test_head_is_answered_without_a_body(shared_server: LiveServer) -> None:
    response = await send_request(shared_server, "HEAD", params=QUERY)
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    assert response.content == b""


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/graphql",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/json; charset=latin-1",
        "",
        ";",
    ],
)
async def test_body_of_another_media_type_is_rejected(
    shared_server: LiveServer, content_type: str
) -> None:
    response = await send_request(
        shared_server, content=orjson.dumps(QUERY), headers={"content-type": content_type}
    )
    check_rejection(response, 415, field="Content-Type")


@pytest.mark.parametrize(
    "content_type", ["APPLICATION/JSON", 'application/json;charset="UTF-8"', "application/json ;"]
)
async def test_content_type_is_parsed_as_a_media_type(
    shared_server: LiveServer, content_type: str
) -> None:
    response = await send_request(
        shared_server, content=orjson.dumps(QUERY), headers={"content-type": content_type}
    )
    assert response.json() == {"data": {"__typename": "Query"}}


@pytest.mark.parametrize(
    "accept",
    [
        "application/xml",
        "text/html",
        "image/*, text/plain",
        "application/json;q=0",
        "application/json;q=0.000",
        "application/json; charset=utf-16",
        "*/*;q=much",
        ";,;;",
    ],
)
async def test_request_that_accepts_no_offered_type_is_rejected(
    shared_server: LiveServer, accept: str
) -> None:
    response = await send_request(shared_server, accept=accept, json=QUERY)
    check_rejection(response, 406, field="Accept")


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/graphql-response+json, application/json;q=0.9", GRAPHQL_RESPONSE),
        ("application/json;q=0.9, application/graphql-response+json", GRAPHQL_RESPONSE),
        ("*/*;q=0.1, APPLICATION/GRAPHQL-RESPONSE+JSON;charset=utf-8", GRAPHQL_RESPONSE),
        ("application/json, application/graphql-response+json", JSON),
        ("text/html, */*;q=0.8", JSON),
        ("application/*", JSON),
        ("", JSON),
    ],
)
async def test_response_has_the_media_type_that_the_client_prefers(
    shared_server: LiveServer, accept: str, media_type: str
) -> None:
    response = await send_request(shared_server, accept=accept, json=QUERY)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{media_type}; charset=utf-8"


async def test_several_accept_headers_are_combined(shared_server: LiveServer) -> None:
    headers = [("accept", "text/html;q=0.1"), ("accept", GRAPHQL_RESPONSE)]
    response = await send_request(shared_server, json=QUERY, headers=headers)
    assert response.headers["content-type"].startswith(GRAPHQL_RESPONSE)


async def _stream_chunks(megabytes: int) -> AsyncIterator[bytes]:
    for _ in range(megabytes):
        yield MEGABYTE


@pytest.mark.parametrize("declared", [True, False], ids=["with its length", "in chunks"])
async def test_body_of_10_mb_is_rejected(shared_server: LiveServer, *, declared: bool) -> None:
    response = await send_request(
        shared_server,
        content=MEGABYTE * 10 if declared else _stream_chunks(10),
        headers={"content-type": JSON},
    )
    check_rejection(response, 413, field="body")
    assert await shared_server.execute(TYPENAME)


async def _send_raw(server: LiveServer, data: bytes, *, wait: bool = True) -> bytes:
    """Send bytes; return what the server sends until it closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read() if wait else b""
    finally:
        writer.close()
        await writer.wait_closed()


async def test_body_that_does_not_arrive_times_out(
    shared_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.transport.http._BODY_SECONDS", 0.05)
    answer = await _send_raw(
        shared_server,
        b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"query":',
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert orjson.loads(body)["errors"][0]["extensions"]["field"] == "body"


async def test_client_that_disconnects_within_its_body_causes_no_error(
    shared_server: LiveServer,
) -> None:
    await _send_raw(
        shared_server,
        b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b'Content-Length: 100\r\n\r\n{"query":',
        wait=False,
    )
    assert await shared_server.execute(TYPENAME)


@pytest.mark.parametrize(
    "query_string",
    [
        "query=%zz",
        "query=%",
        "query=%ff%fe",
        "query=%7B__typename%7D%00",
        "query=%7B+__typename",
    ],
)
async def test_get_with_a_malformed_query_string_is_rejected(
    shared_server: LiveServer, query_string: str
) -> None:
    response = await shared_server.http.get(
        f"/graphql?{query_string}", headers={"accept": GRAPHQL_RESPONSE}
    )
    check_rejection(response, 400, media_type=GRAPHQL_RESPONSE)


@pytest.mark.parametrize("name", ["variables", "extensions"])
@pytest.mark.parametrize("value", ["{", "x", "[]", "1", "%7B", "[" * 10_000])
async def test_get_parameter_that_is_not_a_json_object_is_rejected(
    shared_server: LiveServer, name: str, value: str
) -> None:
    response = await send_request(shared_server, "GET", params=QUERY | {name: value})
    check_rejection(response, 400, field=name)


async def test_get_without_a_query_is_rejected(shared_server: LiveServer) -> None:
    check_rejection(await send_request(shared_server, "GET"), 400, field="query")


async def test_empty_get_parameter_counts_as_absent(
    shared_server: LiveServer,
) -> None:
    parameters = QUERY | {"variables": "", "operationName": "", "extensions": ""}
    response = await send_request(shared_server, "GET", params=parameters)
    assert response.json() == {"data": {"__typename": "Query"}}


async def test_valid_request_id_of_the_caller_is_used(shared_server: LiveServer) -> None:
    headers = {"x-request-id": "Trace-1.2_3"}
    response = await send_request(shared_server, json={"query": "{"}, headers=headers)
    assert response.headers["x-request-id"] == "Trace-1.2_3"
    check_rejection(response, 200)


@pytest.mark.parametrize("sent_id", [None, "", "a b", "x" * 65, "<script>", "é", "a;b", "a\tb"])
async def test_request_without_a_valid_id_gets_a_generated_one(
    shared_server: LiveServer, sent_id: str | None
) -> None:
    headers = {} if sent_id is None else {"x-request-id": sent_id.encode()}
    ids = set()
    for _ in range(2):
        response = await send_request(shared_server, json={"query": "{"}, headers=headers)
        check_rejection(response, 200)
        ids.add(response.headers["x-request-id"])
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in {"src", "href"} and value]


async def test_browser_gets_graphiql_from_this_host_only(shared_server: LiveServer) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    page = await send_request(shared_server, "GET", accept=browser)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|[\"'(]//", page.text)
    references = _References()
    references.feed(page.text)
    assets = [address for address in references.addresses if not address.startswith("data:")]
    assert {address.rpartition(".")[2] for address in assets} == {"css", "js"}
    for address in assets:
        assert address.startswith("/static/graphiql/")
        asset = await shared_server.http.get(address)
        assert asset.status_code == 200
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", asset.text)


async def test_browser_that_sends_a_query_gets_json(shared_server: LiveServer) -> None:
    response = await send_request(shared_server, "GET", accept="text/html,*/*;q=0.8", params=QUERY)
    assert response.json() == {"data": {"__typename": "Query"}}


LEAKS = re.compile(r"SELECT|INSERT|does not exist|asyncpg|sqlalchemy|Traceback|File \"|/db/")


async def break_history(server: LiveServer) -> None:
    """Make each statement that reads the change log fail with an error that is not retryable."""
    await wait_until_connected(server)
    async with server.services.database.write() as session:
        await session.execute(text("ALTER TABLE status_changes RENAME COLUMN note TO remark"))


@pytest.mark.asyncio(loop_scope="function")
async def test_internal_error_is_logged_with_the_request_id_and_leaks_nothing(
    server: LiveServer, logged: list[EventDict]
) -> None:
    await break_history(server)
    response = await send_request(
        server,
        json={
            "query": '{ registry { version } node(nodeId: "node-1-hetzner-gex44") '
            "{ nodeId statusChanges { nodes { note } } } }"
        },
        headers={"x-request-id": "the-request"},
    )
    assert response.status_code == 200
    body = response.json()
    assert body["data"] == {"registry": {"version": "0.1.0"}, "node": None}
    [error] = body["errors"]
    assert error["path"] == ["node", "statusChanges"]
    assert error["extensions"] == {
        "code": "INTERNAL",
        "retryable": False,
        "requestId": "the-request",
    }
    assert not LEAKS.search(response.text)
    [failure] = [event for event in logged if event["event"] == "request.failed"]
    logged.remove(failure)
    assert failure["request_id"] == "the-request"
    assert failure["path"] == ["node", "statusChanges"]
    assert "status_changes.note does not exist" in str(failure["exc_info"])


@pytest.mark.asyncio(loop_scope="function")
async def test_mutation_with_an_internal_error_is_rolled_back(
    server: LiveServer, logged: list[EventDict]
) -> None:
    await break_history(server)
    response = await send_request(
        server,
        accept=GRAPHQL_RESPONSE,
        json={
            "query": 'mutation { registerNode(input: {nodeId: "a", role: BACKUP, type: WORKER,'
            ' bootId: "b"}) { created } }'
        },
    )
    assert response.status_code == 200
    assert response.json()["data"] is None
    assert response.json()["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert not LEAKS.search(response.text)
    logged[:] = [event for event in logged if event["event"] != "request.failed"]
    data = await server.execute('{ node(nodeId: "a") { id } }')
    assert data == {"node": None}


@pytest.mark.asyncio(loop_scope="function")
async def test_stored_value_that_does_not_fit_the_schema_is_an_internal_error(
    server: LiveServer, logged: list[EventDict]
) -> None:
    await register(server, "a")
    await beat(server, "a", 1, metrics={"cpuPercent": 1})
    async with server.services.database.write() as session:
        await session.execute(text("""UPDATE heartbeat_log SET metrics = '{"cpu_percent": "x"}'"""))
    response = await send_request(
        server, json={"query": '{ node(nodeId: "a") { metrics { cpuPercent } } }'}
    )
    assert response.json()["data"] == {"node": {"metrics": {"cpuPercent": None}}}
    assert response.json()["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert [event["event"] for event in logged if event["log_level"] == "error"] == [
        "request.failed"
    ]
    logged.clear()
