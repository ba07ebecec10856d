"""The complexity of an operation: measured before it runs, in bounded time for any document."""

import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from gql import GraphQLRequest
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    SelectionSetNode,
    VariableNode,
    build_schema,
    get_introspection_query,
    get_named_type,
    get_nullable_type,
    get_operation_ast,
    is_list_type,
    parse,
)
from hypothesis import given
from hypothesis import strategies as st

from agent import documents
from graph.api.schema import schema
from graph.core.settings import MAX_COUNTED_COST, Settings
from graph.execution.document_cache import _RULES
from graph.execution.document_validation import validate_document
from graph.execution.query_cost import ASSUMED_LENGTH, measure_complexity
from graph.execution.query_limits import Complexity, QueryLimits, QueryTooComplex
from tests.support.paths import ROOT

LIMITS = QueryLimits.from_settings(Settings())
README = (ROOT / "README.md").read_text(encoding="utf-8")
USED_DOCUMENTS = [
    *(
        document.payload["query"]
        for document in vars(documents).values()
        if isinstance(document, GraphQLRequest)
    ),
    *re.findall(r"```graphql\n(.*?)```", README, re.DOTALL),
    get_introspection_query(
        specified_by_url=True,
        directive_is_repeatable=True,
        schema_description=True,
        input_value_deprecation=True,
    ),
]
EVERYTHING = """
  id nodeId name role type labels ipAddress localIp hostname status statusReason statusSince
  lastHeartbeat registeredAt updatedAt capabilities metadata
  metrics {
    cpuPercent memoryPercent memoryAvailableMb diskPercent loadAverage extra
    gpus { name utilizationPercent memoryTotalMb memoryFreeMb temperatureCelsius }
  }
  profiles { id name type config enabled version createdAt updatedAt }
  effectiveProfiles { name type config fromRole fromNode }
"""


def measure(query: str, graphql_schema: GraphQLSchema = schema.graphql) -> Complexity:
    document = parse(query)
    operation = get_operation_ast(document)
    assert operation is not None
    return measure_complexity(graphql_schema, document, operation)


def evaluate_cost(query: str, **variables: Any) -> int:
    return measure(query).cost.evaluate(variables)


@pytest.mark.parametrize("query", USED_DOCUMENTS)
def test_every_used_document_is_within_the_limits_for_any_variables(query: str) -> None:
    complexity = measure(query)
    LIMITS.check(complexity, {})
    assert complexity.cost.maximum <= LIMITS.cost


@pytest.mark.parametrize("query", USED_DOCUMENTS)
def test_every_used_document_is_valid_and_within_the_token_limit(query: str) -> None:
    document = parse(query, max_tokens=Settings().max_query_tokens)
    assert validate_document(schema.graphql, document, _RULES, shows_schema=True) == []


def test_a_full_page_of_nodes_is_allowed_and_one_with_all_heartbeats_is_rejected() -> None:
    LIMITS.check(
        measure(f"{{ nodes(first: 1000) {{ nodes {{ {EVERYTHING} }} totalCount }} }}"), None
    )
    complexity = measure(
        "{ nodes(first: 1000) { nodes { heartbeats(first: 1000) { nodes { id } } } } }"
    )
    with pytest.raises(QueryTooComplex, match="cost is 1002002, the limit is 250000") as rejection:
        LIMITS.check(complexity, None)
    assert rejection.value.details == {"exceeded": "cost", "cost": 1_002_002, "limit": 250_000}
    assert rejection.value.code == "QUERY_TOO_COMPLEX"


def test_a_batch_of_a_thousand_heartbeats_costs_little() -> None:
    batch = """
        mutation ($inputs: [RecordHeartbeatInput!]!) {
          recordHeartbeats(inputs: $inputs) { ... on RecordHeartbeatPayload { nodeId status } }
        }
    """
    assert evaluate_cost(batch, inputs=[{"sequence": n} for n in range(1000)]) < 100


@pytest.mark.parametrize(
    ("argument", "variables", "rows"),
    [
        ("", {}, 50),
        ("(first: 7)", {}, 7),
        ("(first: null)", {}, 50),
        ("(first: 2000000000)", {}, 1000),
        ("(first: -1)", {}, 0),
        ("(first: $n)", {"n": 3}, 3),
        ("(first: $n)", {}, 50),
        ("(first: $n)", {"n": None}, 50),
        ("(first: $n)", {"n": 10**30}, 1000),
        ("(first: $n)", {"n": -5}, 0),
        ("(first: $n)", {"n": "many"}, 1000),
        ("(first: $n)", {"n": True}, 1000),
        ("(first: $n)", {"n": {"a": [1]}}, 1000),
        ("(first: $m)", {}, 20),
        ("(first: $m)", {"m": None}, 50),
        ("(first: $m)", {"m": 4}, 4),
    ],
)
def test_a_page_is_charged_per_row(argument: str, variables: dict[str, Any], rows: int) -> None:
    query = (
        f"query ($n: Int, $m: Int = 20) {{ nodes{argument} {{ totalCount nodes {{ id name }} }} }}"
    )
    assert evaluate_cost(query, **variables) == 1 + 1 + 1 + 2 * rows


def test_each_list_of_an_object_has_its_own_size() -> None:
    query = "{ availableNodes(limit: 3) { candidates { score } excluded(first: 7) { nodeId } } }"
    assert evaluate_cost(query) == 1 + (1 + 3) + (1 + 7)


def test_a_list_without_a_size_argument_has_an_assumed_length() -> None:
    assert evaluate_cost("{ roleProfiles { id name } }") == 1 + 2 * ASSUMED_LENGTH
    assert evaluate_cost("{ __schema { types { name } } }") == 1 + 1 + ASSUMED_LENGTH


def test_fragments_are_charged_wherever_they_are_spread() -> None:
    complexity = measure("""
        query @skip(if: false) {
          ...Top
          again: registry { ...Inner }
        }
        fragment Top on Query { ... @include(if: true) { one: registry { ...Inner } } }
        fragment Inner on Registry { a: mode b: mode @skip(if: false) nodeCounts { ...Counts } }
        fragment Counts on NodeCounts { c: total ... on NodeCounts { d: online } }
    """)
    assert (complexity.aliases, complexity.directives, complexity.depth) == (
        2 + 2 * 4,
        1 + 1 + 2,
        3,
    )
    assert complexity.root_fields == ("registry", "registry")
    assert complexity.cost.evaluate({}) == 2 * (1 + 2 + 1 + 2)


def test_root_fields_are_merged_as_they_are_resolved() -> None:
    complexity = measure("""
        mutation {
          ...F ...F recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 1}) { status }
          ... { recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 1}) { nodeId } }
        }
        fragment F on Mutation {
          again: recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 2}) { status }
          deregisterNode(input: {nodeId: "a"}) { revision }
        }
    """)
    assert sorted(complexity.root_fields) == [
        "deregisterNode",
        "recordHeartbeat",
        "recordHeartbeat",
    ]


DEEP = '{ node(nodeId: "a") ' + "{ ... " * 30 + "{ nodeId }" + " }" * 30 + " }"
NESTED = "{ __schema { types " + "{ ofType " * 30 + "{ name }" + " }" * 30 + " } }"


@pytest.mark.parametrize(
    ("query", "limit_name", "value"),
    [
        (NESTED, "depth", 33),
        ("{" + "".join(f" a{n}: __typename" for n in range(60)) + " }", "aliases", 60),
        ("{ __typename " + "@skip(if: false) " * 51 + "}", "directives", 51),
        (
            "query ($f: Int "
            + "@x " * 30
            + ") { ...F } fragment F on Query "
            + "@x " * 30
            + "{ __typename }",
            "directives",
            60,
        ),
        (
            "{"
            + " ...F" * 10
            + " } fragment F on Query { "
            + " ".join(f"a{n}: __typename" for n in range(6))
            + " }",
            "aliases",
            60,
        ),
    ],
)
def test_a_query_above_a_limit_is_rejected_with_its_name(
    query: str, limit_name: str, value: int
) -> None:
    with pytest.raises(QueryTooComplex, match=f"{limit_name} is {value}, the limit") as rejection:
        LIMITS.check(measure(query), None)
    assert rejection.value.details["exceeded"] == limit_name
    assert rejection.value.details[limit_name] == value


def test_inline_fragments_add_no_depth() -> None:
    assert measure(DEEP).depth == 2


def test_nested_fragment_spreads_are_measured_quickly() -> None:
    length = 90
    chain = "".join(
        f"fragment F{n} on Query {{ ...F{n + 1} @skip(if: false) ...F{n + 1} }} "
        for n in range(length)
    )
    bomb = (
        f"query ($n: Int) {{ ...F0 }} {chain}"
        f"fragment F{length} on Query {{ a: nodes(first: $n) {{ nodes {{ id }} }} }}"
    )
    started_at = time.thread_time()
    complexity = measure(bomb)
    assert (
        complexity.cost.evaluate({"n": 3})
        == complexity.aliases
        == complexity.directives
        == MAX_COUNTED_COST
    )
    assert time.thread_time() - started_at < 1
    assert complexity.root_fields == ("nodes",)


@pytest.mark.parametrize("query", [documents.RECORD_HEARTBEAT, documents.AVAILABLE_NODES])
def test_frequent_operations_are_allowed_without_evaluating_their_cost(
    query: GraphQLRequest,
) -> None:
    class Untouchable(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise AssertionError(name)

        def __iter__(self) -> Any:
            raise AssertionError

        def __len__(self) -> int:
            return 1

    LIMITS.check(measure(query.payload["query"]), Untouchable())


# A schema with every way in which a type may contain a page.
PAGE_SCHEMA = build_schema("""
    type Query { page(first: Int = 2): Page list(limit: Int = 3): [Item!]! one: Item }
    type Page { items: [Item!]! edges: [Edge] total: Int more(first: Int = 1): [Item] }
    type Edge { node: Item! }
    type Item { id: ID tags: [String!] children: [Item!] page(first: Int = 2): Page }
""")
COMPOSITE = {"page": "Page", "list": "Item", "one": "Item", "items": "Item", "edges": "Edge"} | {
    "more": "Item",
    "node": "Item",
    "children": "Item",
}
FIELDS = {
    "Query": ["page", "list", "one", "__typename"],
    "Page": ["items", "edges", "total", "more", "__typename"],
    "Edge": ["node", "__typename"],
    "Item": ["id", "tags", "children", "page"],
}
SIZE_ARGUMENTS = {"page": ("first", 2), "more": ("first", 1), "list": ("limit", 3)}
SIZES = st.integers(0, 4)
Fragments = list[tuple[str, str]]


@st.composite
def draw_selections(draw: st.DrawFn, kind: str, fragments: Fragments, depth: int) -> str:
    """Draw selections of at most `depth` levels of objects, which spread only `fragments`."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        usable = [name for name, condition in fragments if condition == kind]
        form = draw(st.sampled_from(["field", "field", "field", "inline", "spread"]))
        if form == "spread" and usable:
            parts.append(f"...{draw(st.sampled_from(usable))}")
        elif form == "inline" and depth > 0:
            condition = draw(st.sampled_from(["", f"on {kind}"]))
            inner = draw(draw_selections(kind, fragments, depth - 1))
            parts.append(f"... {condition} {{ {inner} }}")
        else:
            parts.append(draw(draw_fields(kind, fragments, depth)))
    return " ".join(parts)


@st.composite
def draw_fields(draw: st.DrawFn, kind: str, fragments: Fragments, depth: int) -> str:
    names = [name for name in FIELDS[kind] if depth > 0 or name not in COMPOSITE]
    if not names or (name := draw(st.sampled_from(names))) not in COMPOSITE:
        return draw(st.sampled_from(["", "x: "])) + (name if names else "__typename")
    size = ""
    if name in SIZE_ARGUMENTS:
        value = draw(st.sampled_from(["", "null", "$a", "$b"]) | SIZES.map(str))
        size = f"({SIZE_ARGUMENTS[name][0]}: {value})" if value else ""
    return f"{name}{size} {{ {draw(draw_selections(COMPOSITE[name], fragments, depth - 1))} }}"


@st.composite
def draw_queries(draw: st.DrawFn) -> str:
    """Draw a query whose fragments spread the ones before them."""
    fragments: Fragments = []
    text = ""
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(FIELDS)))
        inner = draw(draw_selections(kind, fragments, 1))
        text += f" fragment F{number} on {kind} {{ {inner} }}"
        fragments.append((f"F{number}", kind))
    return (
        f"query ($a: Int, $b: Int = 3) {{ {draw(draw_selections('Query', fragments, 3))} }}{text}"
    )


class LargestAnswer:
    """The number of values in the largest answer, counted row by row."""

    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        operation = get_operation_ast(document)
        assert operation is not None
        self.variables: dict[str, int | None] = {"a": None, "b": 3, **variables}
        self.fragments = {
            fragment.name.value: fragment
            for fragment in document.definitions
            if isinstance(fragment, FragmentDefinitionNode)
        }
        self.values = self.count_selection("Query", operation.selection_set, ASSUMED_LENGTH)

    def count_selection(self, kind: str, selection_set: SelectionSetNode | None, page: int) -> int:
        total = 0
        for selection in selection_set.selections if selection_set else ():
            match selection:
                case InlineFragmentNode():
                    total += self.count_selection(kind, selection.selection_set, page)
                case FragmentSpreadNode():
                    fragment = self.fragments[selection.name.value]
                    total += self.count_selection(kind, fragment.selection_set, page)
                case FieldNode():
                    total += 1 + self.count_field(kind, selection, page)
        return total

    def count_field(self, kind: str, node: FieldNode, page: int) -> int:
        parent = PAGE_SCHEMA.type_map[kind]
        assert isinstance(parent, GraphQLObjectType)
        field = PAGE_SCHEMA.get_field(parent, node.name.value)
        assert field is not None
        size, inner = self.size(node), get_named_type(field.type).name
        if not is_list_type(get_nullable_type(field.type)):
            page = ASSUMED_LENGTH if size is None else size
            return self.count_selection(inner, node.selection_set, page)
        rows = page if size is None else size
        return sum(
            self.count_selection(inner, node.selection_set, ASSUMED_LENGTH) for _ in range(rows)
        )

    def size(self, node: FieldNode) -> int | None:
        if node.name.value not in SIZE_ARGUMENTS:
            return None
        number = None
        if node.arguments:
            value = node.arguments[0].value
            if isinstance(value, VariableNode):
                number = self.variables[value.name.value]
            elif isinstance(value, IntValueNode):
                number = int(value.value)
        return SIZE_ARGUMENTS[node.name.value][1] if number is None else number


VARIABLES = st.fixed_dictionaries({}, optional={"a": st.none() | SIZES, "b": st.none() | SIZES})


@given(draw_queries(), VARIABLES)
def test_the_cost_is_the_number_of_values_in_the_largest_answer(
    query: str, variables: dict[str, int | None]
) -> None:
    document = parse(query)
    operation = get_operation_ast(document)
    assert operation is not None
    cost = measure_complexity(PAGE_SCHEMA, document, operation).cost
    assert cost.evaluate(variables) == LargestAnswer(document, variables).values
    assert cost.evaluate(variables) <= cost.maximum


@given(draw_queries(), SIZES, SIZES, st.integers(0, 2000), st.integers(0, 2000))
def test_longer_pages_never_cost_less(query: str, a: int, b: int, more_a: int, more_b: int) -> None:
    cost = measure(query, PAGE_SCHEMA).cost
    less, more = (
        cost.evaluate({"a": a, "b": b}),
        cost.evaluate({"a": a + more_a, "b": b + more_b}),
    )
    assert less <= more <= cost.maximum
