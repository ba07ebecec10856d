"""Compiled operations answer as the executor does, or leave the operation to it."""

import enum
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import pytest
import strawberry
from graphql import (
    ExecutionResult,
    GraphQLError,
    OperationDefinitionNode,
    execute,
    parse,
    subscribe,
    validate,
)
from hypothesis import example, given
from hypothesis import strategies as st
from strawberry.schema.config import StrawberryConfig

from bench.heartbeat_load import RECORD_HEARTBEATS
from graph.api.context import Context, Info
from graph.api.scalars import JSON, SCALARS
from graph.api.schema import Schema
from graph.api.schema import schema as registry_schema
from graph.execution.compiled_operation import (
    CompiledOperation,
    compile_event_shape,
    compile_operation,
)
from graph.execution.document_cache import load_trusted_documents


@strawberry.enum
class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@strawberry.input
class Part:
    name: str
    weights: list[float | None] | None = None


@strawberry.input
class Order:
    number: int
    colour: Colour = Colour.BLUE
    wanted: Colour | None = None
    express: bool | None = True
    parts: list[Part] | None = None
    size_in_mm: float | None = None
    extra: JSON | None = None


@strawberry.type
class Receipt:
    number: int
    colour: Colour
    wanted: Colour | None
    received_at: datetime
    lines: list[str | None]
    extra: JSON | None

    @strawberry.field
    def worked_out(self) -> int:
        return self.number + 1


@strawberry.type
class Rejection:
    number: int
    why: str | None


Outcome = Annotated[Receipt | Rejection, strawberry.union("Outcome")]


def make_receipt(order: Order) -> Receipt:
    if order.number == 0:
        raise ValueError("nothing ordered")
    return Receipt(
        number=order.number,
        colour=order.colour,
        wanted=order.wanted,
        received_at=datetime(2026, 1, 2, 3, 4, 5, order.number % 1000, UTC),
        lines=[repr(order), None],
        extra=order.extra,
    )


@strawberry.type
class Query:
    nothing: None = None


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def place(self, info: Info, order: Order) -> Receipt:
        assert cast("str", info.context) == "the caller's"
        return make_receipt(order)

    @strawberry.mutation
    async def place_all(self, info: Info, orders: list[Order]) -> list[Outcome]:
        assert cast("str", info.context) == "the caller's"
        return [
            Rejection(number=order.number, why=None) if order.number < 0 else make_receipt(order)
            for order in orders
        ]

    @strawberry.mutation
    async def maybe(self, info: Info, order: Order) -> Receipt | None:
        assert cast("str", info.context) == "the caller's"
        return make_receipt(order)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def outcomes(self, info: Info) -> AsyncIterator[Outcome]:
        for event in cast("list[Receipt | Rejection]", info.context):
            yield event


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(scalar_map=dict(SCALARS)),
)

PLACE = """mutation ($order: Order!) {
  place(order: $order) { number colour wanted receivedAt lines extra }
}"""
PLACE_ALL = """mutation All($of: [Order!]!) {
  done: placeAll(orders: $of) {
    kind: __typename
    ... on Receipt { number receivedAt }
    ... on Rejection { number reason: why }
  }
}"""


def parse_operation(document: str, schema: Schema = schema) -> OperationDefinitionNode:
    node = parse(document)
    assert not validate(schema.graphql, node)
    definition = node.definitions[0]
    assert isinstance(definition, OperationDefinitionNode)
    return definition


def compile_document(document: str) -> CompiledOperation:
    compiled = compile_operation(schema.graphql, parse_operation(document))
    assert compiled is not None
    return compiled


# Values of any type, by which valid inputs are sometimes replaced.
any_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.just("RED"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
)


def with_invalid(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 20).flatmap(lambda chance: values if chance else any_values)


parts = st.fixed_dictionaries(
    {"name": with_invalid(st.text(max_size=3))},
    optional={
        "weights": with_invalid(st.none() | st.lists(st.none() | st.floats(-9, 9), max_size=2))
    },
)
colours = st.sampled_from(["RED", "BLUE"])
orders = st.fixed_dictionaries(
    {"number": with_invalid(st.integers(-3, 2**31 - 1))},
    optional={
        "colour": with_invalid(colours),
        "wanted": with_invalid(st.none() | colours),
        "express": with_invalid(st.none() | st.booleans()),
        "parts": with_invalid(st.none() | st.lists(with_invalid(parts), max_size=2)),
        "sizeInMm": with_invalid(st.none() | st.integers(-5, 5) | st.floats(-5, 5)),
        "extra": any_values,
    },
) | st.dictionaries(st.sampled_from(["number", "unheardOf", "parts"]), any_values, max_size=2)


async def run_executor(document: str, variables: dict[str, Any]) -> ExecutionResult:
    result = execute(
        schema.graphql, parse(document), context_value="the caller's", variable_values=variables
    )
    return result if isinstance(result, ExecutionResult) else await result


async def check_agreement(document: str, variables: dict[str, Any]) -> None:
    """Fail unless the compiled operation answers as the executor, or rejects the same variables."""
    compiled = compile_document(document)
    expected = await run_executor(document, variables)
    arguments = compiled.coerce(variables)
    if arguments is None:
        assert expected.data is None
        assert expected.errors
        return
    result = await compiled.run(arguments, cast("Context", "the caller's"))
    assert result.formatted == expected.formatted


@given(order=with_invalid(orders))
async def test_a_compiled_operation_answers_as_the_executor_does(order: object) -> None:
    await check_agreement(PLACE, {"order": order, "unused": 1})


@given(order_list=with_invalid(st.lists(with_invalid(orders), max_size=4)))
@example(order_list={"number": 1, "parts": {"name": "", "weights": 0}})
async def test_a_compiled_list_of_a_union_is_answered_as_by_the_executor(
    order_list: object,
) -> None:
    await check_agreement(PLACE_ALL, {"of": order_list})


EVENT_SUBSCRIPTION = """subscription { event: outcomes {
  ... on Receipt { kind: __typename number colour wanted receivedAt lines extra }
  ... on Rejection { number why }
} }"""

events = st.builds(
    Receipt,
    number=st.integers(-(2**31), 2**31),  # the largest is out of the range of Int
    colour=st.sampled_from(Colour),
    wanted=st.none() | st.sampled_from(Colour),
    received_at=st.datetimes(timezones=st.just(UTC)),
    lines=st.lists(st.none() | st.text(max_size=3), max_size=3),
    extra=st.none() | st.dictionaries(st.text(max_size=2), any_values, max_size=2),
) | st.builds(Rejection, number=st.integers(-3, 3), why=st.none() | st.text(max_size=3))


@given(event_list=st.lists(events, max_size=3))
async def test_a_compiled_event_shape_matches_the_executor(
    event_list: list[Receipt | Rejection],
) -> None:
    shape = compile_event_shape(schema.graphql, parse_operation(EVENT_SUBSCRIPTION))
    assert shape is not None
    stream = subscribe(schema.graphql, parse(EVENT_SUBSCRIPTION), context_value=event_list)
    assert not isinstance(stream, ExecutionResult)
    executed = [result async for result in await cast("Any", stream)]
    assert len(executed) == len(event_list)
    for event, result in zip(event_list, executed, strict=True):
        if result.errors:
            with pytest.raises(GraphQLError):
                shape(event)
        else:
            assert shape(event) == result.data


@pytest.mark.parametrize(
    "document",
    [
        "subscription { outcomes { ... on Receipt { workedOut } } }",
        "subscription { outcomes { ... on Rejection @skip(if: false) { number } } }",
    ],
)
def test_an_event_with_resolvers_or_directives_is_left_to_the_executor(document: str) -> None:
    assert compile_event_shape(schema.graphql, parse_operation(document)) is None


async def test_missing_variables_are_left_to_the_executor() -> None:
    assert compile_document(PLACE).coerce(None) is None
    assert compile_document(PLACE).coerce({"another": {"number": 1}}) is None


async def test_the_error_of_a_resolver_has_its_path_and_location() -> None:
    arguments = compile_document(PLACE).coerce({"order": {"number": 0}})
    assert arguments is not None
    result = await compile_document(PLACE).run(arguments, cast("Context", "the caller's"))
    assert result.data is None
    [error] = result.errors or []
    assert (error.path, error.locations) == (["place"], [(2, 3)])
    assert isinstance(error.original_error, ValueError)


UNSUPPORTED = {
    "a literal": "mutation { place(order: {number: 1}) { number } }",
    "a literal with a variable": "mutation ($n: Int!) { place(order: {number: $n}) { number } }",
    "a default": "mutation ($o: Order! = {number: 1}) { place(order: $o) { number } }",
    "two fields": "mutation ($o: Order!) { a: place(order: $o) { number }"
    " b: place(order: $o) { number } }",
    "a directive": "mutation ($o: Order!) { place(order: $o) { number @skip(if: false) } }",
    "a directive above": "mutation ($o: Order!) { place(order: $o) @skip(if: false) { number } }",
    "a fragment": "mutation ($o: Order!) { place(order: $o) { ...F } }"
    " fragment F on Receipt { number }",
    "a field twice": "mutation ($o: Order!) { place(order: $o) { number number } }",
    "a field that is worked out": "mutation ($o: Order!) { place(order: $o) { workedOut } }",
    "a result that may be null": "mutation ($o: Order!) { maybe(order: $o) { number } }",
    "an item as a list": "mutation ($o: Order!) { placeAll(orders: [$o]) { __typename } }",
    "introspection": "{ __typename }",
    "no resolver": "{ nothing }",
}


@pytest.mark.parametrize("document", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_an_unsupported_operation_is_left_to_the_executor(document: str) -> None:
    assert compile_operation(schema.graphql, parse_operation(document)) is None


def test_heartbeat_operations_are_compiled() -> None:
    [recording] = [text for text in load_trusted_documents() if "recordHeartbeat(" in text]
    for document in (recording, RECORD_HEARTBEATS):
        assert (
            compile_operation(registry_schema.graphql, parse_operation(document, registry_schema))
            is not None
        )
