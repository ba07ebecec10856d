"""Invalid input: one typed error names the field, and nothing changes."""

import base64
import json
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pytest
import pytest_asyncio
from graphql import GraphQLSyntaxError, parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from graph.core.settings import Settings
from tests.support.api import MAINTENANCE, register
from tests.support.live_server import LiveServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("logged")]

KNOWN = "known"
BOOT = "boot-1"
NODE = {"nodeId": "bad", "role": "BACKUP", "type": "WORKER", "bootId": BOOT}
BEAT = {"nodeId": KNOWN, "bootId": BOOT, "sequence": 1}
ENUMS = {"role", "type", "status", "roles", "types", "statuses", "field", "direction"}

# Everything that a rejected request must leave unchanged.
CONTENT = text("""
SELECT (SELECT md5(string_agg(n::text, ',' ORDER BY n.id)) FROM nodes n),
       (SELECT count(*) FROM status_changes),
       (SELECT count(*) FROM heartbeat_log),
       (SELECT md5(string_agg(p::text, ',' ORDER BY p.id)) FROM node_profiles p),
       (SELECT revision FROM registry_state)
""")


async def read_content(server: LiveServer) -> tuple[Any, ...]:
    async with server.services.database.read() as session:
        return tuple((await session.execute(CONTENT)).one())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(shared_server: LiveServer) -> LiveServer:
    """A server with one node, which is in maintenance, so that time does not change it."""
    await register(shared_server, KNOWN, profiles=[{"name": "p", "type": "LLM", "config": {}}])
    await shared_server.execute(MAINTENANCE, input={"nodeId": KNOWN, "enabled": True})
    return shared_server


@pytest_asyncio.fixture(loop_scope="module")
async def unchanged(registry: LiveServer) -> AsyncIterator[None]:
    before = await read_content(registry)
    yield
    assert await read_content(registry) == before


def format_literal(value: Any, name: str = "") -> str:
    """Return the value as a literal of a GraphQL document."""
    match value:
        case dict():
            return "{" + ", ".join(f"{k}: {format_literal(v, k)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(format_literal(item, name) for item in value) + "]"
        case str() if name in ENUMS and re.fullmatch(r"\w+", value):
            return value
        case float() if not math.isfinite(value):
            return "1e999" if value > 0 else "-1e999"
        case bool() | str() | None:
            return orjson.dumps(value).decode()
    return str(value)


@dataclass(frozen=True)
class Operation:
    """A field of the schema whose arguments are sent as variables or as literals."""

    kind: str
    name: str
    types: dict[str, str]
    selection: str
    around: tuple[str, str] = ("", "")

    def with_variables(self, arguments: dict[str, Any]) -> dict[str, Any]:
        declarations = ", ".join(f"${name}: {self.types[name]}" for name in arguments)
        query = self._query(f" ({declarations})", {name: f"${name}" for name in arguments})
        return {"query": query, "variables": arguments}

    def with_literals(self, arguments: dict[str, Any]) -> dict[str, Any]:
        literals = {name: format_literal(value) for name, value in arguments.items()}
        return {"query": self._query("", literals)}

    def _query(self, declarations: str, arguments: dict[str, str]) -> str:
        pairs = ", ".join(f"{name}: {value}" for name, value in arguments.items())
        before, after = self.around
        return (
            f"{self.kind}{declarations} {{ {before}{self.name}({pairs}) {self.selection}{after} }}"
        )


def define_mutation(name: str, selection: str) -> Operation:
    type_name = name[0].upper() + name[1:] + "Input!"
    return Operation("mutation", name, {"input": type_name}, selection)


REGISTER = define_mutation("registerNode", "{ created }")
RECORD = define_mutation("recordHeartbeat", "{ status }")
MAINTAIN = define_mutation("setMaintenance", "{ node { id } }")
DEREGISTER = define_mutation("deregisterNode", "{ revision }")
BATCH = Operation(
    "mutation", "recordHeartbeats", {"inputs": "[RecordHeartbeatInput!]!"}, "{ __typename }"
)
GET_NODE = Operation("query", "node", {"nodeId": "String!"}, "{ id }")
PAGE = {"first": "Int", "after": "String"}
LIST = Operation(
    "query",
    "nodes",
    {"filter": "NodeFilter", "orderBy": "NodeOrder", **PAGE},
    "{ totalCount }",
)
LOG = Operation(
    "query", "statusChanges", {"filter": "NodeFilter", **PAGE}, "{ nodes { revision } }"
)


def define_node_field(name: str, types: dict[str, str], selection: str) -> Operation:
    """Define a query for a field of the registered node."""
    return Operation("query", name, types, selection, (f'node(nodeId: "{KNOWN}") {{ ', " }"))


NODE_BEATS = define_node_field(
    "heartbeats", {"since": "DateTime", "until": "DateTime", **PAGE}, "{ nodes { id } }"
)
NODE_LOG = define_node_field("statusChanges", PAGE, "{ nodes { revision } }")
AVAILABILITY = define_node_field("availability", {"since": "DateTime!", "until": "DateTime"}, "")


@dataclass(frozen=True)
class Case:
    operation: Operation
    arguments: dict[str, Any]
    field: str
    code: str = "BAD_INPUT"
    as_literal: bool = True
    id: str = ""


def make_input_cases(
    operation: Operation,
    base: dict[str, Any],
    name: str,
    values: dict[str, Any],
    at: str | None = None,
    **options: Any,
) -> list[Case]:
    """Return a case for each value of one field of `input`; the error names the field `at`."""
    return [
        Case(
            operation,
            {"input": {**base, name: value}},
            at or f"input.{name}",
            id=f"{operation.name} {name} {label}",
            **options,
        )
        for label, value in values.items()
    ]


def make_argument_cases(
    operation: Operation, at: str, values: dict[str, dict[str, Any]], **options: Any
) -> list[Case]:
    """Return a case for each set of arguments; the error names the field `at`."""
    return [
        Case(operation, arguments, at, id=f"{operation.name} {at} {label}", **options)
        for label, arguments in values.items()
    ]


def nest(depth: int) -> dict[str, Any]:
    document: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        document = {"a": document}
    return document


def encode_cursor(*parts: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


NO_STRINGS: dict[str, Any] = {
    "a number": 1,
    "a fraction": 1.5,
    "true": True,
    "a list": ["a"],
    "an object": {"a": 1},
}
SQL = "x'; DROP TABLE nodes; --"
NO_IDS: dict[str, Any] = {
    "empty": "",
    "a space": " ",
    "5,000 characters": "x" * 5000,
    "256 characters": "x" * 256,
    "a space within": "a b",
    "a newline": "a\nb",
    "a newline at the end": "a\n",
    "a tab": "a\tb",
    "NUL": "a\0b",
    "escape": "a\x1bb",
    "delete": "a\x7fb",
    "a dash in front": "-a",
    "a dot behind": "a.",
    "an umlaut": "nöde",
    "a Cyrillic letter": "n\u043ede",
    "a zero width space": "a\u200bb",
    "a byte order mark": "\ufeffa",
    "right to left": "\u202ea",
    "a full width digit": "a\uff11",
    "an emoji": "🏃",
    "a combining mark": "a\u0301",
    "SQL": SQL,
    "a path": "../../etc/passwd",
    "a template": "{{7*7}}",
}
NO_NAMES: dict[str, Any] = {
    "empty": "",
    "256 characters": "x" * 256,
    "a space in front": " a",
    "a newline": "a\nb",
    "NUL": "a\0",
    "a line separator": "a\u2028b",
    "right to left": "\u202ea",
    "a zero width space": "\u200b",
}
NO_ADDRESSES = {
    "three parts": "1.2.3",
    "five parts": "1.2.3.4.5",
    "256": "1.2.3.256",
    "a leading zero": "01.2.3.4",
    "a prefix": "10.0.0.1/24",
    "a port": "10.0.0.1:80",
    "a zone": "::1%eth0",
    "brackets": "[::1]",
    "a name": "localhost",
    "empty": "",
    "a space": " 10.0.0.1",
    "NUL": "10.0.0.1\0",
    "other digits": "\uff11.2.3.4",
    "5,000 characters": "1" * 5000,
    "a number": 167772161,
    "a list": ["10.0.0.1", "10.0.0.2"],
}
NO_DOCUMENTS: dict[str, Any] = {
    "text": "{}",
    "a number": 1,
    "a list": [{}],
    "true": True,
    "more than 64 KiB": {"a": "x" * 65536},
    "33 levels": nest(33),
    "150 levels": nest(150),
    "NUL": {"a": ["b\0"]},
    "beyond 63 bits": {"a": 2**63},
    "beyond 64 bits": {"a": [2**64]},
    "far beyond": {"a": -(10**30)},
}
NO_INSTANTS = {
    "without an offset": "2026-01-01T00:00:00",
    "a day": "2026-01-01",
    "text": "tomorrow",
    "empty": "",
    "a number": 1767225600,
    "the 13th month": "2026-13-01T00:00:00Z",
    "before the first year": "0001-01-01T00:00:00+14:00",
    "after the last year": "9999-12-31T23:59:59-14:00",
    "the year 10000": "10000-01-01T00:00:00Z",
    "NUL": "2026-01-01T00:00:00Z\0",
}
NO_ENUMS: dict[str, Any] = {
    "unknown": "NOBODY",
    "lower case": "worker",
    "a number": 1,
    "null": None,
}
NO_NOTES: dict[str, Any] = {
    "2,001 characters": "x" * 2001,
    "NUL": "a\0",
    "escape": "\x1b[2J",
    "right to left": "\u202ea",
}
NO_MEASURES: dict[str, Any] = {
    "negative": -0.1,
    "infinite": math.inf,
    "text": "1",
    "beyond bounds": 1e16,
}
NO_SIZES: dict[str, dict[str, Any]] = {
    "negative": {"first": -1},
    "1,001": {"first": 1001},
    "a million": {"first": 1_000_000},
    "beyond 32 bits": {"first": 2**31},
    "a fraction": {"first": 1.5},
    "text": {"first": "1"},
}
A_TIME, AN_ID = "2026-01-01T00:00:00Z", "00000000-0000-0000-0000-000000000000"
NO_CURSORS = {
    "empty": {"after": ""},
    "garbage": {"after": "garbage"},
    "not ASCII": {"after": "é"},
    "NUL": {"after": "\0"},
    "100,000 characters": {"after": "A" * 100_000},
    "base64 of something else": {"after": base64.b64encode(b"hello").decode()},
    "of null": {"after": base64.b64encode(b"null").decode()},
    "of an object": {"after": base64.b64encode(b'{"nodes.node_id.asc": 1}').decode()},
    "of nothing in a list": {"after": encode_cursor()},
    "of deep JSON": {"after": base64.b64encode(b"[" * 10_000).decode()},
}
INVALID_CASES = [
    *make_input_cases(REGISTER, NODE, "nodeId", NO_IDS | NO_STRINGS),
    *make_input_cases(REGISTER, NODE, "bootId", NO_IDS | NO_STRINGS | {"null": None}),
    *make_input_cases(REGISTER, NODE, "replacesBootId", NO_IDS | NO_STRINGS),
    *make_input_cases(REGISTER, NODE, "name", NO_NAMES | NO_STRINGS),
    *make_input_cases(REGISTER, NODE, "hostname", NO_NAMES | NO_STRINGS),
    *make_input_cases(REGISTER, NODE, "role", NO_ENUMS),
    *make_input_cases(REGISTER, NODE, "type", NO_ENUMS),
    *make_input_cases(REGISTER, NODE, "ipAddress", NO_ADDRESSES),
    *make_input_cases(REGISTER, NODE, "localIp", NO_ADDRESSES),
    *make_input_cases(REGISTER, NODE, "metadata", NO_DOCUMENTS),
    *make_input_cases(REGISTER, NODE, "capabilities", NO_DOCUMENTS),
    *make_input_cases(REGISTER, NODE, "metadata", {"NUL in a key": {"a\0": 1}}, as_literal=False),
    *make_input_cases(REGISTER, NODE, "bogus", {"unknown": 1}),
    *make_input_cases(
        REGISTER, NODE, "labels", {"65": [f"l{i}" for i in range(65)], "an object": {"a": 1}}
    ),
    *make_input_cases(
        REGISTER,
        NODE,
        "labels",
        {"by the thousand": [f"l{i}" for i in range(5000)]},
        as_literal=False,
    ),
    *make_input_cases(
        REGISTER,
        NODE,
        "labels",
        {
            f"{label} in it": ["x", "x", value]
            for label, value in {
                "64 characters": "x" * 64,
                "empty": "",
                "a space": "a b",
                "NUL": "a\0",
                "a number": 1,
                "null": None,
                "an umlaut": "ä",
                "SQL": SQL,
            }.items()
        },
        at="input.labels[2]",
    ),
    *make_input_cases(
        REGISTER,
        NODE,
        "profiles",
        {
            "101": [{"name": f"p{i}", "type": "LLM", "config": {}} for i in range(101)],
            "twice the same": [{"name": "p", "type": "LLM", "config": {}}] * 2,
        },
    ),
    *(
        case
        for name, values in {
            "name": NO_NAMES | NO_STRINGS,
            "type": NO_ENUMS,
            "config": NO_DOCUMENTS | {"null": None},
            "enabled": {"text": "true", "null": None},
        }.items()
        for case in make_input_cases(
            REGISTER,
            NODE,
            "profiles",
            {
                f"{name} {label}": [
                    {"name": "p", "type": "LLM", "config": {}},
                    {"name": "q", "type": "LLM", "config": {}, name: value},
                ]
                for label, value in values.items()
            },
            at=f"input.profiles[1].{name}",
        )
    ),
    *(
        Case(
            REGISTER,
            {"input": {name: value for name, value in NODE.items() if name != missing}},
            f"input.{missing}",
            id=f"registerNode without {missing}",
        )
        for missing in ("role", "type", "bootId")
    ),
    *make_input_cases(RECORD, BEAT, "nodeId", NO_IDS | NO_STRINGS | {"null": None}),
    *make_input_cases(RECORD, BEAT, "bootId", NO_IDS | NO_STRINGS | {"null": None}),
    *make_input_cases(
        RECORD,
        BEAT,
        "sequence",
        {
            "negative": -1,
            "beyond 32 bits": 2**31,
            "beyond 64 bits": 2**64,
            "text": "1",
            "null": None,
        },
    ),
    *make_input_cases(RECORD, BEAT, "sequence", {"a fraction": 1.5}),
    *make_input_cases(RECORD, BEAT, "status", NO_ENUMS | {"not a node's to say": "OFFLINE"}),
    *make_input_cases(RECORD, BEAT, "metrics", {"text": "x", "a list": [1, 2]}),
    *(
        case
        for name in (
            "cpuPercent",
            "memoryPercent",
            "memoryAvailableMb",
            "diskPercent",
            "loadAverage",
        )
        for case in make_input_cases(
            RECORD,
            BEAT,
            "metrics",
            {f"{name} {label}": {name: value} for label, value in NO_MEASURES.items()},
            at=f"input.metrics.{name}",
        )
    ),
    *(
        case
        for name, values in {
            "name": NO_NAMES | NO_STRINGS | {"null": None},
            "utilizationPercent": NO_MEASURES,
            "memoryTotalMb": NO_MEASURES,
            "memoryFreeMb": NO_MEASURES,
            "temperatureCelsius": NO_MEASURES | {"negative": -1000},
        }.items()
        for case in make_input_cases(
            RECORD,
            BEAT,
            "metrics",
            {
                f"gpus {name} {label}": {"gpus": [{"name": "a"}, {"name": "b", name: value}]}
                for label, value in values.items()
            },
            at=f"input.metrics.gpus[1].{name}",
        )
    ),
    *make_input_cases(
        RECORD,
        BEAT,
        "metrics",
        {"gpus 65": {"gpus": [{"name": f"g{i}"} for i in range(65)]}},
        at="input.metrics.gpus",
    ),
    *make_input_cases(
        RECORD,
        BEAT,
        "metrics",
        {
            f"extra {label}": {"extra": value}
            for label, value in (NO_DOCUMENTS | {"more than 16 KiB": {"a": "x" * 16384}}).items()
        },
        at="input.metrics.extra",
    ),
    *make_input_cases(
        RECORD,
        BEAT,
        "metrics",
        {
            "more than 16 KiB in all": {
                "gpus": [{"name": "x" * 200} for _ in range(64)],
                "extra": {"a": "x" * 10_000},
            }
        },
        at="input.metrics",
    ),
    *make_input_cases(
        MAINTAIN, {"enabled": True}, "nodeId", {"5,000 characters": "x" * 5000, "NUL": "a\0"}
    ),
    *make_input_cases(MAINTAIN, {"enabled": True}, "nodeId", NO_STRINGS | {"null": None}),
    *make_input_cases(
        MAINTAIN, {"nodeId": KNOWN}, "enabled", {"text": "true", "null": None, "a number": 1}
    ),
    *make_input_cases(MAINTAIN, {"nodeId": KNOWN, "enabled": True}, "note", NO_NOTES | NO_STRINGS),
    *make_input_cases(MAINTAIN, {"nodeId": KNOWN, "enabled": True}, "until", NO_INSTANTS),
    *make_input_cases(
        MAINTAIN, {"nodeId": KNOWN, "enabled": False}, "until", {"at an end": A_TIME}
    ),
    *make_input_cases(
        DEREGISTER, {}, "nodeId", {"5,000 characters": "x" * 5000, "NUL": "a\0"} | NO_STRINGS
    ),
    *make_input_cases(DEREGISTER, {"nodeId": KNOWN}, "note", NO_NOTES | NO_STRINGS),
    *(
        Case(
            operation,
            {"input": base},
            "nodeId",
            code="NODE_NOT_FOUND",
            id=f"{operation.name} unknown node",
        )
        for operation, base in [
            (RECORD, BEAT | {"nodeId": "unknown"}),
            (MAINTAIN, {"nodeId": SQL, "enabled": True}),
            (MAINTAIN, {"nodeId": "\u202e", "enabled": True, "until": A_TIME}),
            (MAINTAIN, {"nodeId": "unknown", "enabled": False}),
            (DEREGISTER, {"nodeId": ""}),
            (DEREGISTER, {"nodeId": SQL}),
        ]
    ),
    Case(
        RECORD,
        {"input": BEAT | {"bootId": "another"}},
        "nodeId",
        code="STALE_BOOT",
        id="recordHeartbeat of another run",
    ),
    *make_argument_cases(BATCH, "inputs", {"1,001": {"inputs": [BEAT] * 1001}}, as_literal=False),
    *make_argument_cases(
        GET_NODE, "nodeId", {"5,000 characters": {"nodeId": "x" * 5000}, "NUL": {"nodeId": "\0"}}
    ),
    *make_argument_cases(
        GET_NODE, "nodeId", {label: {"nodeId": value} for label, value in NO_STRINGS.items()}
    ),
    *(
        case
        for operation in (LIST, LOG, NODE_BEATS, NODE_LOG)
        for case in [
            *make_argument_cases(operation, "first", NO_SIZES),
            *make_argument_cases(operation, "after", NO_CURSORS),
        ]
    ),
    *make_argument_cases(
        LIST,
        "after",
        {
            "of a field that is unknown": {"after": encode_cursor("nodes.status.asc", "a", AN_ID)},
            "of another order": {"after": encode_cursor("nodes.node_name.asc", "a", AN_ID)},
            "of the other direction": {"after": encode_cursor("nodes.node_id.desc", "a", AN_ID)},
            "of another list": {"after": encode_cursor("changes", 1)},
            "without the id": {"after": encode_cursor("nodes.node_id.asc", "a")},
            "with too much": {"after": encode_cursor("nodes.node_id.asc", "a", AN_ID, 1)},
            "with another id": {"after": encode_cursor("nodes.node_id.asc", "a", "x")},
            "with a number": {"after": encode_cursor("nodes.node_id.asc", 1, AN_ID)},
            "with NUL": {"after": encode_cursor("nodes.node_id.asc", "a\0", AN_ID)},
            **{
                f"with the time {time}": {
                    "orderBy": {"field": "STATUS_SINCE"},
                    "after": encode_cursor("nodes.status_since.asc", time, AN_ID),
                }
                for time in ("x", "2026-01-01T00:00:00", 1, "0001-01-01T00:00:00+14:00")
            },
        },
    ),
    *make_argument_cases(
        LOG,
        "after",
        {
            "of nodes": {"after": encode_cursor("nodes.node_id.asc", "a", AN_ID)},
            "with text": {"after": encode_cursor("changes", "1")},
            "with null": {"after": encode_cursor("changes", None)},
            "beyond 64 bits": {
                "after": base64.b64encode(b'["changes", 18446744073709551616]').decode()
            },
        },
    ),
    *make_argument_cases(
        NODE_BEATS,
        "after",
        {
            "of changes": {"after": encode_cursor("changes", 1)},
            "with another time": {
                "after": encode_cursor("heartbeats", "9999-12-31T23:59:59-14:00", 1)
            },
        },
    ),
    *(
        case
        for name in ("since", "until")
        for case in make_argument_cases(
            NODE_BEATS, name, {label: {name: value} for label, value in NO_INSTANTS.items()}
        )
    ),
    *make_argument_cases(
        AVAILABILITY, "since", {label: {"since": value} for label, value in NO_INSTANTS.items()}
    ),
    *make_argument_cases(
        AVAILABILITY,
        "since",
        {
            "null": {"since": None},
            "in the future": {"since": "2999-01-01T00:00:00Z"},
            "behind its end": {"since": A_TIME, "until": "2025-01-01T00:00:00Z"},
        },
    ),
    *make_argument_cases(LIST, "orderBy.field", {"unknown": {"orderBy": {"field": "SECRET"}}}),
    *make_argument_cases(LIST, "orderBy.field", {"absent": {"orderBy": {}}}),
    *make_argument_cases(
        LIST,
        "orderBy.direction",
        {"unknown": {"orderBy": {"field": "NAME", "direction": "UP; DROP"}}},
    ),
    *(
        case
        for operation in (LIST, LOG)
        for name, at, values in [
            ("search", "", {"256 characters": "x" * 256, "NUL": "\0", **NO_STRINGS}),
            ("profile", "", {"256 characters": "x" * 256, "NUL": "\0", **NO_STRINGS}),
            ("capabilities", "", NO_DOCUMENTS),
            ("bogus", "", {"unknown": 1}),
            ("nodeIds", "[1]", {"256 characters": ["a", "x" * 256], "NUL": ["a", "\0"]}),
            ("nodeIds", "", {"1,001": ["a"] * 1001}),
            ("roles", "[1]", {"unknown": ["BACKUP", "KING"], "null": ["BACKUP", None]}),
            ("types", "", {"unknown": "KING"}),
            ("statuses", "", {"unknown": "DEAD"}),
            ("labels", "", {"text": "x"}),
            ("labels", ".all", {"1,001": {"all": ["a"] * 1001}}),
            ("labels", ".any[0]", {"NUL": {"any": ["\0"]}, "long": {"any": ["x" * 256]}}),
            ("labels", ".none[0]", {"a number": {"none": [1]}, "null": {"none": [None]}}),
        ]
        for case in make_argument_cases(
            operation,
            f"filter.{name}{at}",
            {f"{name} {label}": {"filter": {name: value}} for label, value in values.items()},
        )
    ),
]


def is_finite(value: Any) -> bool:
    return not any(math.isinf(number) for number in _list_floats(value))


def _list_floats(value: Any) -> list[float]:
    match value:
        case float():
            return [value]
        case dict():
            return [number for item in value.values() for number in _list_floats(item)]
        case list():
            return [number for item in value for number in _list_floats(item)]
    return []


def assert_rejected(case: Case, response: httpx.Response) -> None:
    """Assert that there is exactly one error, with the code and the field of the case."""
    assert response.status_code in {200, 400}
    body = response.json()
    [error] = body["errors"]
    extensions = error["extensions"]
    assert extensions["code"] == case.code, error
    if case.code == "BAD_INPUT":
        assert extensions["field"] == case.field, error
        assert extensions["retryable"] is False
    else:
        assert case.field in extensions
    assert extensions["requestId"] == response.headers["x-request-id"]
    assert len(response.content) < 2000
    assert not re.search(
        r"Invalid isoformat|asyncpg|codec|Traceback|object at 0x", error["message"]
    )


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.id) for case in INVALID_CASES if is_finite(case.arguments)],
)
async def test_an_invalid_variable_is_rejected_and_named(registry: LiveServer, case: Case) -> None:
    request = json.dumps(case.operation.with_variables(case.arguments))
    response = await registry.http.post(
        "/graphql", content=request, headers={"content-type": "application/json"}
    )
    assert_rejected(case, response)


MAX_TOKENS = Settings().max_query_tokens


def fits_token_limit(case: Case) -> bool:
    """Return whether the case fits in a document. Lists of a thousand fit only in variables."""
    query = case.operation.with_literals(case.arguments)["query"]
    try:
        parse(query, max_tokens=MAX_TOKENS)
    except GraphQLSyntaxError as error:
        return "tokens" not in error.message
    return True


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id)
        for case in INVALID_CASES
        if case.as_literal and fits_token_limit(case)
    ],
)
async def test_an_invalid_literal_is_rejected_and_named(registry: LiveServer, case: Case) -> None:
    request = case.operation.with_literals(case.arguments)
    assert_rejected(case, await registry.http.post("/graphql", json=request))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "fields",
    [
        'name: "\\uD800"',
        'name: "\\uDC00\\uD800"',
        'name: "\\u{D800}"',
        'name: "\\u{110000}"',
        'metadata: {a: "\\uD800"}',
        "metadata: {a: NaN, b: }",
    ],
)
async def test_a_document_with_a_lone_surrogate_is_rejected(
    registry: LiveServer, fields: str
) -> None:
    query = f"mutation {{ registerNode(input: {{{fields}}}) {{ created }} }}"
    [error] = (await registry.post(query))["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["locations"]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("number", "status", "field"),
    [
        ("NaN", 400, "body"),
        ("Infinity", 400, "body"),
        ("-Infinity", 400, "body"),
        ("1e999", 200, "input.metrics.cpuPercent"),
    ],
)
async def test_a_number_that_is_not_finite_is_rejected(
    registry: LiveServer, number: str, status: int, field: str
) -> None:
    request = RECORD.with_variables({"input": BEAT | {"metrics": {"cpuPercent": "?"}}})
    response = await registry.http.post(
        "/graphql",
        content=json.dumps(request).replace('"?"', number),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == status
    assert response.json()["errors"][0]["extensions"]["field"] == field
    query = RECORD.with_literals({"input": BEAT | {"metrics": {"cpuPercent": "?"}}})["query"]
    [error] = (await registry.post(query.replace('"?"', number)))["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    is_negative_infinity = number.endswith("Infinity") and number.startswith(
        "-"
    )  # which does not parse
    assert error["extensions"].get("field") == (
        None if is_negative_infinity else "input.metrics.cpuPercent"
    )


@pytest.mark.usefixtures("unchanged")
async def test_a_variable_inside_a_literal_is_checked_too(
    registry: LiveServer,
) -> None:
    query = """
    mutation ($value: String) {
      registerNode(
        input: {nodeId: "bad", role: BACKUP, type: WORKER, bootId: "b", metadata: {a: [$value]}}
      ) { created }
    }
    """
    [error] = (await registry.post(query, value="\0"))["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["extensions"]["field"] == "input.metadata"


@pytest.mark.usefixtures("unchanged")
async def test_an_invalid_heartbeat_of_a_batch_is_rejected_alone(registry: LiveServer) -> None:
    inputs = [
        BEAT | {"nodeId": "a b"},
        BEAT | {"sequence": -1},
        BEAT | {"metrics": {"cpuPercent": -1}},
        BEAT | {"nodeId": "unknown"},
        BEAT | {"bootId": "another"},
    ]
    data = await registry.execute(
        "mutation ($inputs: [RecordHeartbeatInput!]!) { recordHeartbeats(inputs: $inputs)"
        " { ... on HeartbeatRejected { nodeId code message } } }",
        inputs=inputs,
    )
    rejections = data["recordHeartbeats"]
    assert [rejection["nodeId"] for rejection in rejections] == [
        rejection["nodeId"] for rejection in inputs
    ]
    codes = ["BAD_INPUT", "BAD_INPUT", "BAD_INPUT", "NODE_NOT_FOUND", "STALE_BOOT"]
    assert [rejection["code"] for rejection in rejections] == codes
    fields = ["inputs[0].nodeId", "inputs[1].sequence", "inputs[2].metrics.cpuPercent"]
    assert [rejection["message"].partition(": ")[0] for rejection in rejections[:3]] == fields


@pytest.mark.usefixtures("unchanged")
async def test_an_empty_batch_has_an_empty_result(registry: LiveServer) -> None:
    data = await registry.execute(
        "mutation { recordHeartbeats(inputs: []) { __typename } }",
    )
    assert data == {"recordHeartbeats": []}


@pytest.mark.usefixtures("unchanged")
async def test_a_repeated_enum_value_counts_once(registry: LiveServer) -> None:
    data = await registry.execute(
        "query ($filter: NodeFilter) { nodes(filter: $filter) { totalCount } }",
        filter={"roles": ["BACKUP", "PRODUCTION"] * 15_000, "statuses": ["MAINTENANCE"] * 15_000},
    )
    assert data == {"nodes": {"totalCount": 1}}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "search", [SQL, "%", "_", "\\", "known' OR '1'='1", "\u202e", "\U0001f3c3"]
)
async def test_search_text_is_never_sql(registry: LiveServer, search: str) -> None:
    query = "query ($filter: NodeFilter) { nodes(filter: $filter) { totalCount } }"
    for name, value in {
        "search": search,
        "profile": search,
        "nodeIds": [search],
        "labels": {"all": [search], "any": [search]},
        "capabilities": {search: [search]},
    }.items():
        data = await registry.execute(query, filter={name: value})
        assert data == {"nodes": {"totalCount": 0}}


@pytest.mark.asyncio(loop_scope="function")
async def test_input_at_the_limits_is_stored_unchanged(server: LiveServer) -> None:
    node = {
        "nodeId": "x" * 255,
        "name": f"{SQL} Ωé\U0001f3c3",
        "hostname": "%s" * 127,
        "labels": [f"l{i}".ljust(63, "x") for i in range(64)],
        "ipAddress": "::ffff:10.0.0.1",
        "localIp": "fe80:0::1",
        "metadata": nest(32),
        "capabilities": {"a": "x" * (65536 - 8)},
    }
    await server.execute(
        "mutation ($input: RegisterNodeInput!) { registerNode(input: $input) { created } }",
        input=NODE | node,
    )
    data = await server.execute(
        "query ($id: String!) { node(nodeId: $id)"
        " { name hostname labels ipAddress localIp metadata capabilities } }",
        id="x" * 255,
    )
    stored = {name: value for name, value in node.items() if name != "nodeId"}
    assert data["node"] == stored | {"ipAddress": "::ffff:10.0.0.1", "localIp": "fe80::1"}
    odd = {"": {SQL: [2**63 - 1, -(2**63), 1e300, 0.1, None, True, "\U0001f3c3\u202e"]}}
    await register(server, "odd", metadata=odd)
    data = await server.execute('{ node(nodeId: "odd") { metadata } }')
    assert data["node"]["metadata"] == odd
    note = f"{SQL}\n\t".ljust(2000, "x")
    await server.execute(MAINTENANCE, input={"nodeId": "odd", "enabled": True, "note": note})
    data = await server.execute(
        '{ node(nodeId: "odd") { statusChanges(first: 1) { nodes { note } } } }'
    )
    assert data["node"]["statusChanges"]["nodes"] == [{"note": note}]
    for first in (0, 1000):
        await server.execute(
            "query ($first: Int) { nodes(first: $first) { totalCount } }", first=first
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ANYTHING = settings(
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def vary(valid: dict[str, Any], *more: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return inputs in which anything replaces some fields, among them those named in `more`."""
    names = st.sampled_from([*valid, *more])
    return st.dictionaries(names, st.text() | JSON, max_size=3).map(lambda changes: valid | changes)


async def assert_answered(server: LiveServer, request: Any) -> None:
    """Assert that the response has data, or errors of which none is the registry's fault."""
    response = await server.http.post(
        "/graphql", content=json.dumps(request), headers={"content-type": "application/json"}
    )
    assert response.status_code in {200, 400}
    body = response.json()
    assert body.keys() <= {"data", "errors"}
    for error in body.get("errors", []):
        assert error["extensions"]["code"] not in {"INTERNAL", "UNAVAILABLE"}
        assert error["extensions"]["requestId"] == response.headers["x-request-id"]


@pytest.mark.asyncio(loop_scope="function")
@ANYTHING
@given(node=vary(NODE, "name", "hostname", "labels", "ipAddress", "metadata", "profiles"))
async def test_any_registration_is_answered(server: LiveServer, node: dict[str, Any]) -> None:
    await assert_answered(server, REGISTER.with_variables({"input": node}))


@pytest.mark.asyncio(loop_scope="function")
@ANYTHING
@given(
    beat=vary(BEAT, "status", "metrics"),
    metrics=vary({"cpuPercent": 1, "gpus": [{"name": "a"}], "extra": {}}, "loadAverage"),
)
async def test_any_heartbeat_is_answered(
    server: LiveServer, beat: dict[str, Any], metrics: dict[str, Any]
) -> None:
    await assert_answered(server, RECORD.with_variables({"input": {"metrics": metrics} | beat}))
    await assert_answered(
        server, BATCH.with_variables({"inputs": [beat, BEAT | {"metrics": metrics}]})
    )


@pytest.mark.asyncio(loop_scope="function")
@ANYTHING
@given(request=JSON, query=st.text())
async def test_any_request_is_answered(server: LiveServer, request: Any, query: str) -> None:
    await assert_answered(server, request)
    await assert_answered(server, {"query": query})
    await assert_answered(server, {"query": f"{{ node(nodeId: {query}) {{ id }} }}"})
    await assert_answered(server, GET_NODE.with_variables({"nodeId": request}))
