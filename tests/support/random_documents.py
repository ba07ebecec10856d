"""Random requests: valid and invalid operations of the schema, with values of any kind."""

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
# The strategies support only queries and mutations, so that subscriptions are drawn as queries.
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
    """Draw a request with some strings replaced, and with its values in variables or literals."""
    [operation] = visit(draw(documents), _TextReplacer(draw)).definitions
    assert isinstance(operation, OperationDefinitionNode)
    operation = replace(operation, operation=kind)
    operation, variables = _lift_arguments(operation) if draw(st.booleans()) else (operation, {})
    return {"query": print_ast(operation), "variables": variables}


class _TextReplacer(Visitor):
    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__()
        self._draw = draw

    def leave_string_value(self, node: StringValueNode, *_: object) -> StringValueNode:
        is_replaced = self._draw(st.booleans())
        return StringValueNode(value=self._draw(TEXTS)) if is_replaced else node


def _lift_arguments(
    operation: OperationDefinitionNode,
) -> tuple[OperationDefinitionNode, dict[str, Any]]:
    """Return the operation with the arguments of its root fields as variables, and their values."""
    root = SCHEMA.get_root_type(operation.operation)
    assert root is not None
    values: dict[str, Any] = {}
    definitions: list[VariableDefinitionNode] = []

    def lift(field: FieldNode, argument: ArgumentNode) -> ArgumentNode:
        definition = root.fields.get(field.name.value)
        if definition is None or argument.name.value not in definition.args:
            return argument
        variable = VariableNode(name=NameNode(value=f"v{len(values)}"))
        values[variable.name.value] = value_from_ast_untyped(argument.value)
        kind = parse_type(str(definition.args[argument.name.value].type))
        definitions.append(VariableDefinitionNode(variable=variable, type=kind))
        return replace(argument, value=variable)

    selections = tuple(
        replace(
            selection,
            arguments=tuple(lift(selection, value) for value in selection.arguments or ()),
        )
        if isinstance(selection, FieldNode)
        else selection
        for selection in operation.selection_set.selections
    )
    selection_set = replace(operation.selection_set, selections=selections)
    operation = replace(
        operation, selection_set=selection_set, variable_definitions=tuple(definitions)
    )
    return operation, values


def _make_requests(
    make: Any, schema: GraphQLSchema, kind: OperationType
) -> st.SearchStrategy[dict[str, Any]]:
    strategy = partial(make, schema, custom_scalars=SCALARS, print_ast=lambda document: document)
    return _requests(strategy() | strategy(mode=Mode.NEGATIVE), kind)


QUERIES = _make_requests(queries, SCHEMA, OperationType.QUERY)
MUTATIONS = _make_requests(mutations, SCHEMA, OperationType.MUTATION)
SUBSCRIPTIONS = _make_requests(queries, STREAMS, OperationType.SUBSCRIPTION)
