"""Documents made to be slow to look at are not, and errors tell no more than they may."""

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

# The slowest takes 60 ms; the rest is for slower machines.
SECONDS = 0.2


def found(query: str, *, shows_schema: bool = True) -> list[GraphQLError]:
    document = parse_document(query, max_tokens=TOKENS)
    return validate_document(schema.graphql, document, _RULES, shows_schema=shows_schema)


def quickest(work: Callable[[], object]) -> float:
    """Seconds of three attempts: a busy machine is slow now and then."""

    def attempt() -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    return min(attempt() for _ in range(3))


def many(count: int, text: str) -> str:
    """Each time with a number for `<n>`, and the one after it for `<next>`."""
    return " ".join(
        text.replace("<n>", str(n)).replace("<next>", str((n + 1) % count)) for n in range(count)
    )


LONG = "x" * 180
HOSTILE = {
    "one field over and over": "{" + many(110, 'node(nodeId: "a") { id }') + "}",
    "fields that conflict": "{" + many(75, 'a: node(nodeId: "<n>") { id }') + "}",
    "one deep field over and over": (
        "{" + many(60, 'node(nodeId: "a") { metrics { gpus { name } } }') + "}"
    ),
    "inline fragments": "{" + many(120, "... { registry { mode } }") + "}",
    "fragments side by side": (
        "{" + many(80, "...F<n>") + "}" + many(80, "fragment F<n> on Query { registry { mode } }")
    ),
    "fragments that fan out": (
        "{ ...A0 ...B0 }"
        + many(29, "fragment A<n> on Query { ...A<next> ...B<next> registry { mode } }")
        + many(29, "fragment B<n> on Query { ...A<next> ...B<next> registry { mode } }")
    ).replace("...A0 ...B0 registry", "registry"),  # the last ones end it
    "fragments in a circle": "{ ...F0 }" + many(80, "fragment F<n> on Query { ...F<next> ...F7 }"),
    "an argument that each error prints": (
        "{ nodes(filter: {" + many(320, f'a<n>: "{LONG}"') + "}) { revision } }"
    ),
    "directives": "{ __typename " + many(140, "@skip(if: true)") + "}",
    "long words to guess": "{" + many(900, "nodes" * 13 + "<n>") + "}",
    "operations": many(130, "query Q<n> { ...F }") + "fragment F on Query { __typename }",
    "introspection": "{" + many(85, "__schema { types { name kind fields } }") + "}",
}


@pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("shows_schema", [True, False])
def test_a_document_made_to_be_slow_is_judged_at_once(
    query: str,
    shows_schema: bool,  # noqa: FBT001  # a parameter
) -> None:
    assert quickest(lambda: found(query, shows_schema=shows_schema)) < SECONDS
    assert len(found(query, shows_schema=shows_schema)) <= MAX_ERRORS + 1


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
def test_a_document_that_is_too_large_is_refused_at_once(query: str) -> None:
    def refused() -> None:
        with pytest.raises((GraphQLSyntaxError, QueryTooComplex)):
            found(query)

    assert quickest(refused) < SECONDS


def test_a_text_of_the_largest_length_passes() -> None:
    query = "{ __typename }"
    assert found(query + " " * (MAX_CHARACTERS - len(query))) == []
    with pytest.raises(QueryTooComplex, match="length is 131073, the limit is 131072"):
        found(query + " " * (MAX_CHARACTERS - len(query) + 1))


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
def test_an_error_suggests_what_was_meant_only_where_the_schema_is_shown(query: str) -> None:
    assert "Did you mean" in found(query)[0].message or "@skp" in query
    hidden = found(query, shows_schema=False)
    assert hidden
    assert not [error for error in hidden if "Did you mean" in error.message]


@pytest.mark.parametrize(
    "query", ["{ __schema { types { name } } }", '{ __type(name: "Node") { name } }']
)
def test_the_schema_can_be_hidden_but_not_the_name_of_a_type(query: str) -> None:
    assert found(query) == []
    assert "introspection has been disabled" in found(query, shows_schema=False)[0].message
    assert found("{ __typename registry { __typename } }", shows_schema=False) == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, True),
        ({"env": "production"}, False),
        ({"env": "production", "introspection": True, "graphiql": True}, True),
        ({"introspection": False, "graphiql": False}, False),
    ],
)
def test_production_hides_the_schema_and_graphiql_unless_told_otherwise(
    given: dict[str, object],
    shown: bool,  # noqa: FBT001  # a parameter
) -> None:
    settings = load_settings(**given)
    assert (settings.is_schema_visible, settings.has_graphiql) == (shown, shown)


def test_a_bound_that_is_none_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ConfigurationError, match="NODE_REGISTRY_MAX_QUERY_COST"):
        load_settings(max_query_cost=10**9)
