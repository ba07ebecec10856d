"""What an operation comes to is known before it runs, and as quickly however it is written."""

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

BOUNDS = QueryLimits.from_settings(Settings())
README = (ROOT / "README.md").read_text(encoding="utf-8")
IN_USE = [
    *(
        each.payload["query"]
        for each in vars(documents).values()
        if isinstance(each, GraphQLRequest)
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


def asked(query: str, of: GraphQLSchema = schema.graphql) -> Complexity:
    document = parse(query)
    operation = get_operation_ast(document)
    assert operation is not None
    return measure_complexity(of, document, operation)


def cost(query: str, **variables: Any) -> int:
    return asked(query).cost.evaluate(variables)


@pytest.mark.parametrize("query", IN_USE)
def test_every_document_in_use_passes_whatever_its_variables_are(query: str) -> None:
    found = asked(query)
    BOUNDS.check(found, {})
    assert found.cost.maximum <= BOUNDS.cost


@pytest.mark.parametrize("query", IN_USE)
def test_every_document_in_use_is_validated_within_the_bounds(query: str) -> None:
    document = parse(query, max_tokens=Settings().max_query_tokens)
    assert validate_document(schema.graphql, document, _RULES, shows_schema=True) == []


def test_the_largest_page_of_all_there_is_to_know_passes_and_of_their_heartbeats_does_not() -> None:
    BOUNDS.check(asked(f"{{ nodes(first: 1000) {{ nodes {{ {EVERYTHING} }} totalCount }} }}"), None)
    too_much = asked(
        "{ nodes(first: 1000) { nodes { heartbeats(first: 1000) { nodes { id } } } } }"
    )
    with pytest.raises(QueryTooComplex, match="cost is 1002002, the limit is 250000") as refused:
        BOUNDS.check(too_much, None)
    assert refused.value.details == {"exceeded": "cost", "cost": 1_002_002, "limit": 250_000}
    assert refused.value.code == "QUERY_TOO_COMPLEX"


def test_a_batch_of_a_thousand_heartbeats_costs_little() -> None:
    batch = """
        mutation ($inputs: [RecordHeartbeatInput!]!) {
          recordHeartbeats(inputs: $inputs) { ... on RecordHeartbeatPayload { nodeId status } }
        }
    """
    assert cost(batch, inputs=[{"sequence": n} for n in range(1000)]) < 100


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
def test_a_page_counts_as_often_as_it_has_rows(
    argument: str, variables: dict[str, Any], rows: int
) -> None:
    query = (
        f"query ($n: Int, $m: Int = 20) {{ nodes{argument} {{ totalCount nodes {{ id name }} }} }}"
    )
    assert cost(query, **variables) == 1 + 1 + 1 + 2 * rows


def test_each_list_of_one_object_has_its_own_size() -> None:
    query = "{ availableNodes(limit: 3) { candidates { score } excluded(first: 7) { nodeId } } }"
    assert cost(query) == 1 + (1 + 3) + (1 + 7)


def test_a_list_that_nothing_bounds_has_an_assumed_length() -> None:
    assert cost("{ roleProfiles { id name } }") == 1 + 2 * ASSUMED_LENGTH
    assert cost("{ __schema { types { name } } }") == 1 + 1 + ASSUMED_LENGTH


def test_what_stands_in_fragments_counts_wherever_they_are_spread() -> None:
    found = asked("""
        query @skip(if: false) {
          ...Top
          again: registry { ...Inner }
        }
        fragment Top on Query { ... @include(if: true) { one: registry { ...Inner } } }
        fragment Inner on Registry { a: mode b: mode @skip(if: false) nodeCounts { ...Counts } }
        fragment Counts on NodeCounts { c: total ... on NodeCounts { d: online } }
    """)
    assert (found.aliases, found.directives, found.depth) == (2 + 2 * 4, 1 + 1 + 2, 3)
    assert found.root_fields == ("registry", "registry")
    assert found.cost.evaluate({}) == 2 * (1 + 2 + 1 + 2)


def test_root_fields_are_those_that_are_resolved() -> None:
    found = asked("""
        mutation {
          ...F ...F recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 1}) { status }
          ... { recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 1}) { nodeId } }
        }
        fragment F on Mutation {
          again: recordHeartbeat(input: {nodeId: "a", bootId: "b", sequence: 2}) { status }
          deregisterNode(input: {nodeId: "a"}) { revision }
        }
    """)
    assert sorted(found.root_fields) == ["deregisterNode", "recordHeartbeat", "recordHeartbeat"]


DEEP = '{ node(nodeId: "a") ' + "{ ... " * 30 + "{ nodeId }" + " }" * 30 + " }"
NESTED = "{ __schema { types " + "{ ofType " * 30 + "{ name }" + " }" * 30 + " } }"


@pytest.mark.parametrize(
    ("query", "exceeded", "found"),
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
def test_what_exceeds_a_bound_is_refused_by_name(query: str, exceeded: str, found: int) -> None:
    with pytest.raises(QueryTooComplex, match=f"{exceeded} is {found}, the limit") as refused:
        BOUNDS.check(asked(query), None)
    assert refused.value.details["exceeded"] == exceeded
    assert refused.value.details[exceeded] == found


def test_inline_fragments_add_no_depth() -> None:
    assert asked(DEEP).depth == 2


def test_fragments_that_spread_one_another_take_no_time() -> None:
    length = 90
    chain = "".join(
        f"fragment F{n} on Query {{ ...F{n + 1} @skip(if: false) ...F{n + 1} }} "
        for n in range(length)
    )
    bomb = (
        f"query ($n: Int) {{ ...F0 }} {chain}"
        f"fragment F{length} on Query {{ a: nodes(first: $n) {{ nodes {{ id }} }} }}"
    )
    began = time.thread_time()
    found = asked(bomb)
    assert found.cost.evaluate({"n": 3}) == found.aliases == found.directives == MAX_COUNTED_COST
    assert time.thread_time() - began < 1
    assert found.root_fields == ("nodes",)


@pytest.mark.parametrize("query", [documents.RECORD_HEARTBEAT, documents.AVAILABLE_NODES])
def test_what_is_asked_all_the_time_is_passed_without_working_out_its_cost(
    query: GraphQLRequest,
) -> None:
    class Untouchable(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            raise AssertionError(name)

        def __iter__(self) -> Any:
            raise AssertionError

        def __len__(self) -> int:
            return 1

    BOUNDS.check(asked(query.payload["query"]), Untouchable())


# Every way in which a type may hold a page.
PAGES = build_schema("""
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
SIZED = {"page": ("first", 2), "more": ("first", 1), "list": ("limit", 3)}
SIZES = st.integers(0, 4)
Fragments = list[tuple[str, str]]


@st.composite
def selections(draw: st.DrawFn, kind: str, fragments: Fragments, depth: int) -> str:
    """Of at most so many levels of objects; only `fragments` are spread."""
    written = []
    for _ in range(draw(st.integers(1, 3))):
        usable = [name for name, condition in fragments if condition == kind]
        form = draw(st.sampled_from(["field", "field", "field", "inline", "spread"]))
        if form == "spread" and usable:
            written.append(f"...{draw(st.sampled_from(usable))}")
        elif form == "inline" and depth > 0:
            condition = draw(st.sampled_from(["", f"on {kind}"]))
            inner = draw(selections(kind, fragments, depth - 1))
            written.append(f"... {condition} {{ {inner} }}")
        else:
            written.append(draw(fields(kind, fragments, depth)))
    return " ".join(written)


@st.composite
def fields(draw: st.DrawFn, kind: str, fragments: Fragments, depth: int) -> str:
    names = [name for name in FIELDS[kind] if depth > 0 or name not in COMPOSITE]
    if not names or (name := draw(st.sampled_from(names))) not in COMPOSITE:
        return draw(st.sampled_from(["", "x: "])) + (name if names else "__typename")
    size = ""
    if name in SIZED:
        value = draw(st.sampled_from(["", "null", "$a", "$b"]) | SIZES.map(str))
        size = f"({SIZED[name][0]}: {value})" if value else ""
    return f"{name}{size} {{ {draw(selections(COMPOSITE[name], fragments, depth - 1))} }}"


@st.composite
def queries(draw: st.DrawFn) -> str:
    """With fragments that spread the ones before them."""
    fragments: Fragments = []
    text = ""
    for number in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(FIELDS)))
        inner = draw(selections(kind, fragments, 1))
        text += f" fragment F{number} on {kind} {{ {inner} }}"
        fragments.append((f"F{number}", kind))
    return f"query ($a: Int, $b: Int = 3) {{ {draw(selections('Query', fragments, 3))} }}{text}"


class LargestAnswer:
    """How many values it has: it is written out, row by row."""

    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        operation = get_operation_ast(document)
        assert operation is not None
        self.variables: dict[str, int | None] = {"a": None, "b": 3, **variables}
        self.fragments = {
            each.name.value: each
            for each in document.definitions
            if isinstance(each, FragmentDefinitionNode)
        }
        self.values = self.selected("Query", operation.selection_set, ASSUMED_LENGTH)

    def selected(self, kind: str, chosen: SelectionSetNode | None, page: int) -> int:
        total = 0
        for each in chosen.selections if chosen else ():
            match each:
                case InlineFragmentNode():
                    total += self.selected(kind, each.selection_set, page)
                case FragmentSpreadNode():
                    fragment = self.fragments[each.name.value]
                    total += self.selected(kind, fragment.selection_set, page)
                case FieldNode():
                    total += 1 + self.below(kind, each, page)
        return total

    def below(self, kind: str, node: FieldNode, page: int) -> int:
        parent = PAGES.type_map[kind]
        assert isinstance(parent, GraphQLObjectType)
        field = PAGES.get_field(parent, node.name.value)
        assert field is not None
        size, inner = self.size(node), get_named_type(field.type).name
        if not is_list_type(get_nullable_type(field.type)):
            page = ASSUMED_LENGTH if size is None else size
            return self.selected(inner, node.selection_set, page)
        rows = page if size is None else size
        return sum(self.selected(inner, node.selection_set, ASSUMED_LENGTH) for _ in range(rows))

    def size(self, node: FieldNode) -> int | None:
        if node.name.value not in SIZED:
            return None
        number = None
        if node.arguments:
            value = node.arguments[0].value
            if isinstance(value, VariableNode):
                number = self.variables[value.name.value]
            elif isinstance(value, IntValueNode):
                number = int(value.value)
        return SIZED[node.name.value][1] if number is None else number


VARIABLES = st.fixed_dictionaries({}, optional={"a": st.none() | SIZES, "b": st.none() | SIZES})


@given(queries(), VARIABLES)
def test_the_cost_is_the_number_of_values_in_the_largest_answer(
    query: str, variables: dict[str, int | None]
) -> None:
    document = parse(query)
    operation = get_operation_ast(document)
    assert operation is not None
    found = measure_complexity(PAGES, document, operation).cost
    assert found.evaluate(variables) == LargestAnswer(document, variables).values
    assert found.evaluate(variables) <= found.maximum


@given(queries(), SIZES, SIZES, st.integers(0, 2000), st.integers(0, 2000))
def test_who_asks_for_longer_pages_never_pays_less(
    query: str, a: int, b: int, more_a: int, more_b: int
) -> None:
    found = asked(query, PAGES).cost
    less, more = (
        found.evaluate({"a": a, "b": b}),
        found.evaluate({"a": a + more_a, "b": b + more_b}),
    )
    assert less <= more <= found.maximum
