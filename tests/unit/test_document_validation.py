"""Hostile documents are validated quickly, and errors do not reveal a hidden schema."""

import time
from collections.abc import Callable

import pytest
from graphql import GraphQLError, GraphQLSyntaxError

from graph.api.schema import schema
from graph.core.settings import ConfigurationError, Settings, load_settings
from graph.execution.document_cache import _RULES
from graph.execution.document_validation import (
    MAX_CHARACTERS,
    MAX_ERRORS,
    parse_document,
    validate_document,
)
from graph.execution.query_limits import QueryTooComplex

TOKENS = Settings().max_query_tokens

# The slowest document takes 60 ms; the margin is for slower machines.
SECONDS = 0.2


def validate(query: str, *, shows_schema: bool = True) -> list[GraphQLError]:
    document = parse_document(query, max_tokens=TOKENS)
    return validate_document(schema.graphql, document, _RULES, shows_schema=shows_schema)


def measure_fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three attempts, as a busy machine is slow at times."""

    def attempt() -> float:
        started_at = time.thread_time()
        work()
        return time.thread_time() - started_at

    return min(attempt() for _ in range(3))


def repeat(count: int, text: str) -> str:
    """Repeat a text with the number of each copy for `<n>`, and the next number for `<next>`."""
    return " ".join(
        text.replace("<n>", str(n)).replace("<next>", str((n + 1) % count)) for n in range(count)
    )


LONG = "x" * 180
HOSTILE = {
    "one field over and over": "{" + repeat(110, 'node(nodeId: "a") { id }') + "}",
    "fields that conflict": "{" + repeat(75, 'a: node(nodeId: "<n>") { id }') + "}",
    "one deep field over and over": (
        "{" + repeat(60, 'node(nodeId: "a") { metrics { gpus { name } } }') + "}"
    ),
    "inline fragments": "{" + repeat(120, "... { registry { mode } }") + "}",
    "fragments side by side": (
        "{"
        + repeat(80, "...F<n>")
        + "}"
        + repeat(80, "fragment F<n> on Query { registry { mode } }")
    ),
    "fragments that fan out": (
        "{ ...A0 ...B0 }"
        + repeat(29, "fragment A<n> on Query { ...A<next> ...B<next> registry { mode } }")
        + repeat(29, "fragment B<n> on Query { ...A<next> ...B<next> registry { mode } }")
    ).replace("...A0 ...B0 registry", "registry"),  # the last fragments spread no others
    "fragments in a circle": "{ ...F0 }"
    + repeat(80, "fragment F<n> on Query { ...F<next> ...F7 }"),
    "an argument that each error prints": (
        "{ nodes(filter: {" + repeat(320, f'a<n>: "{LONG}"') + "}) { revision } }"
    ),
    "directives": "{ __typename " + repeat(140, "@skip(if: true)") + "}",
    "long words to guess": "{" + repeat(900, "nodes" * 13 + "<n>") + "}",
    "operations": repeat(130, "query Q<n> { ...F }") + "fragment F on Query { __typename }",
    "introspection": "{" + repeat(85, "__schema { types { name kind fields } }") + "}",
}


@pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("shows_schema", [True, False])
def test_a_hostile_document_is_validated_quickly(
    query: str,
    shows_schema: bool,  # noqa: FBT001  # a parameter
) -> None:
    assert measure_fastest(lambda: validate(query, shows_schema=shows_schema)) < SECONDS
    assert len(validate(query, shows_schema=shows_schema)) <= MAX_ERRORS + 1


@pytest.mark.parametrize(
    "query",
    [
        "{" + " __typename" * 1_000_000 + " }",
        "{ a" * 300_000,
        "{ __typename " + "@skip(if: true) " * 1000 + "}",
        "# " + "a comment\n#" * 1000 + "\n{ __typename }",
        '{ node(nodeId: "' + "a" * 10_000_000 + '") { id } }',
        " " * 10_000_000 + "{ __typename }",
    ],
)
def test_a_document_that_is_too_large_is_rejected_quickly(query: str) -> None:
    def require_rejection() -> None:
        with pytest.raises((GraphQLSyntaxError, QueryTooComplex)):
            validate(query)

    assert measure_fastest(require_rejection) < SECONDS


def test_a_document_of_the_maximum_length_is_accepted() -> None:
    query = "{ __typename }"
    assert validate(query + " " * (MAX_CHARACTERS - len(query))) == []
    with pytest.raises(QueryTooComplex, match="length is 131073, the limit is 131072"):
        validate(query + " " * (MAX_CHARACTERS - len(query) + 1))


GUESSES = [
    "{ nods { revision } }",
    "{ nodes(frst: 1) { revision } }",
    "{ nodes { ... on NodConnection { revision } } }",
    "query ($a: NodFilter) { nodes(filter: $a) { revision } }",
    "{ nodes(filter: {serch: null}) { revision } }",
    "{ nodes(filter: {roles: [PRODUCTIO]}) { revision } }",
    "{ __typename @skp(if: true) }",
]


@pytest.mark.parametrize("query", GUESSES)
def test_an_error_contains_suggestions_only_if_the_schema_is_visible(query: str) -> None:
    assert "Did you mean" in validate(query)[0].message or "@skp" in query
    hidden = validate(query, shows_schema=False)
    assert hidden
    assert not [error for error in hidden if "Did you mean" in error.message]


@pytest.mark.parametrize(
    "query", ["{ __schema { types { name } } }", '{ __type(name: "Node") { name } }']
)
def test_the_schema_can_be_hidden_but_not_the_name_of_a_type(query: str) -> None:
    assert validate(query) == []
    assert "introspection has been disabled" in validate(query, shows_schema=False)[0].message
    assert validate("{ __typename registry { __typename } }", shows_schema=False) == []


@pytest.mark.parametrize(
    ("arguments", "is_visible"),
    [
        ({}, True),
        ({"env": "production"}, False),
        ({"env": "production", "introspection": True, "graphiql": True}, True),
        ({"introspection": False, "graphiql": False}, False),
    ],
)
def test_production_hides_the_schema_and_graphiql_by_default(
    arguments: dict[str, object],
    is_visible: bool,  # noqa: FBT001  # a parameter
) -> None:
    settings = load_settings(**arguments)
    assert (settings.is_schema_visible, settings.has_graphiql) == (is_visible, is_visible)


def test_a_limit_out_of_range_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="NODE_REGISTRY_MAX_QUERY_COST"):
        load_settings(max_query_cost=10**9)
