"""Requests that nobody would think of: operations of the schema, right and wrong, with anything."""

from dataclasses import replace
from functools import partial
from typing import Any

from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    GraphQLSchema,
    NameNode,
    OperationDefinitionNode,
    OperationType,
    StringValueNode,
    VariableDefinitionNode,
    VariableNode,
    Visitor,
    build_schema,
    parse_type,
    print_ast,
    value_from_ast_untyped,
    visit,
)
from hypothesis import strategies as st
from hypothesis_graphql import Mode, mutations, nodes, queries

from tests.support.paths import ROOT

SCHEMA = build_schema((ROOT / "schema.graphql").read_text())
# The strategies know queries and mutations alone.
STREAMS = GraphQLSchema(
    query=SCHEMA.subscription_type, types=[*SCHEMA.type_map.values()], directives=SCHEMA.directives
)

KNOWN = "node-2-macbook-m4max"
TEXTS = st.sampled_from(
    [
        *(KNOWN, "", " ", "\0", "null", "-1", "1e999", "9" * 400, "x" * 256, "x" * 70_000),
        *("'; DROP TABLE nodes; --", "' OR '1'='1", '" OR ""="', "$1", ":name", "%s%n", "%", "_"),
        *("\\", "\\'; SELECT pg_sleep(9); --", "E'\\x27'", "/*", "${7*7}", "{{7*7}}", "../../etc"),
        *("a\u0301", "\u202e", "\ufeff", "\u2028", "\u200d", "\u017f", "İ", "ß" * 200, "💥" * 64),
        *(
            "\ud7ff\ue000",
            "\U0010ffff",
            "\x7f",
            "\x1b[2J",
            "\r\nSet-Cookie: a=b",
            "2025-01-17T14:30Z",
        ),
    ]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([2**31, 2**63, -1, 0, 10**300])
JSON_VALUES = st.recursive(
    TEXTS.map(nodes.String) | NUMBERS.map(nodes.Int),
    lambda inner: st.lists(inner, max_size=3).map(nodes.List),
    max_leaves=5,
)
SCALARS = {
    "DateTime": (st.datetimes().map(lambda d: f"{d.isoformat()}Z") | TEXTS).map(nodes.String),
    "IPAddress": (st.ip_addresses().map(str) | TEXTS).map(nodes.String),
    "JSON": JSON_VALUES,
    "Revision": (NUMBERS.map(str) | TEXTS).map(nodes.String),
}


@st.composite
def _requests(
    draw: st.DrawFn, documents: st.SearchStrategy[DocumentNode], kind: OperationType
) -> dict[str, Any]:
    """Draw a request with other texts in places, and with values in variables or literals."""
    [operation] = visit(draw(documents), _Retold(draw)).definitions
    assert isinstance(operation, OperationDefinitionNode)
    operation = replace(operation, operation=kind)
    operation, variables = _lifted(operation) if draw(st.booleans()) else (operation, {})
    return {"query": print_ast(operation), "variables": variables}


class _Retold(Visitor):
    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__()
        self._draw = draw

    def leave_string_value(self, node: StringValueNode, *_: object) -> StringValueNode:
        retold = self._draw(st.booleans())
        return StringValueNode(value=self._draw(TEXTS)) if retold else node


def _lifted(
    operation: OperationDefinitionNode,
) -> tuple[OperationDefinitionNode, dict[str, Any]]:
    """The arguments of the root fields are variables then."""
    root = SCHEMA.get_root_type(operation.operation)
    assert root is not None
    values: dict[str, Any] = {}
    definitions: list[VariableDefinitionNode] = []

    def lifted(field: FieldNode, argument: ArgumentNode) -> ArgumentNode:
        known = root.fields.get(field.name.value)
        if known is None or argument.name.value not in known.args:
            return argument
        variable = VariableNode(name=NameNode(value=f"v{len(values)}"))
        values[variable.name.value] = value_from_ast_untyped(argument.value)
        kind = parse_type(str(known.args[argument.name.value].type))
        definitions.append(VariableDefinitionNode(variable=variable, type=kind))
        return replace(argument, value=variable)

    selections = tuple(
        replace(each, arguments=tuple(lifted(each, given) for given in each.arguments or ()))
        if isinstance(each, FieldNode)
        else each
        for each in operation.selection_set.selections
    )
    selection_set = replace(operation.selection_set, selections=selections)
    asked = replace(operation, selection_set=selection_set, variable_definitions=tuple(definitions))
    return asked, values


def _of(make: Any, schema: GraphQLSchema, kind: OperationType) -> st.SearchStrategy[dict[str, Any]]:
    made = partial(make, schema, custom_scalars=SCALARS, print_ast=lambda document: document)
    return _requests(made() | made(mode=Mode.NEGATIVE), kind)


QUERIES = _of(queries, SCHEMA, OperationType.QUERY)
MUTATIONS = _of(mutations, SCHEMA, OperationType.MUTATION)
SUBSCRIPTIONS = _of(queries, STREAMS, OperationType.SUBSCRIPTION)
