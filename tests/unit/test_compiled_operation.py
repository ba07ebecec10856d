"""Plans: the executor's answers in a fraction of its time, or none at all."""

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
from graph.api.schema import schema as ours
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
    said: list[str | None]
    extra: JSON | None

    @strawberry.field
    def worked_out(self) -> int:
        return self.number + 1


@strawberry.type
class Refusal:
    number: int
    why: str | None


Outcome = Annotated[Receipt | Refusal, strawberry.union("Outcome")]


def receipt(order: Order) -> Receipt:
    if order.number == 0:
        raise ValueError("nothing ordered")
    return Receipt(
        number=order.number,
        colour=order.colour,
        wanted=order.wanted,
        received_at=datetime(2026, 1, 2, 3, 4, 5, order.number % 1000, UTC),
        said=[repr(order), None],
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
        return receipt(order)

    @strawberry.mutation
    async def place_all(self, info: Info, orders: list[Order]) -> list[Outcome]:
        assert cast("str", info.context) == "the caller's"
        return [
            Refusal(number=order.number, why=None) if order.number < 0 else receipt(order)
            for order in orders
        ]

    @strawberry.mutation
    async def maybe(self, info: Info, order: Order) -> Receipt | None:
        assert cast("str", info.context) == "the caller's"
        return receipt(order)


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def told(self, info: Info) -> AsyncIterator[Outcome]:
        for event in cast("list[Receipt | Refusal]", info.context):
            yield event


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(scalar_map=dict(SCALARS)),
)

PLACE = """mutation ($order: Order!) {
  place(order: $order) { number colour wanted receivedAt said extra }
}"""
PLACE_ALL = """mutation All($of: [Order!]!) {
  done: placeAll(orders: $of) {
    kind: __typename
    ... on Receipt { number receivedAt }
    ... on Refusal { number reason: why }
  }
}"""


def operation(document: str, schema: Schema = schema) -> OperationDefinitionNode:
    node = parse(document)
    assert not validate(schema.graphql, node)
    found = node.definitions[0]
    assert isinstance(found, OperationDefinitionNode)
    return found


def planned(document: str) -> CompiledOperation:
    plan = compile_operation(schema.graphql, operation(document))
    assert plan is not None
    return plan


# Mostly what a client means to send, and all the ways of getting it wrong.
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.just("RED"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
)


def perhaps(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 20).flatmap(lambda chance: values if chance else anything)


parts = st.fixed_dictionaries(
    {"name": perhaps(st.text(max_size=3))},
    optional={"weights": perhaps(st.none() | st.lists(st.none() | st.floats(-9, 9), max_size=2))},
)
colours = st.sampled_from(["RED", "BLUE"])
orders = st.fixed_dictionaries(
    {"number": perhaps(st.integers(-3, 2**31 - 1))},
    optional={
        "colour": perhaps(colours),
        "wanted": perhaps(st.none() | colours),
        "express": perhaps(st.none() | st.booleans()),
        "parts": perhaps(st.none() | st.lists(perhaps(parts), max_size=2)),
        "sizeInMm": perhaps(st.none() | st.integers(-5, 5) | st.floats(-5, 5)),
        "extra": anything,
    },
) | st.dictionaries(st.sampled_from(["number", "unheardOf", "parts"]), anything, max_size=2)


async def by_executor(document: str, variables: dict[str, Any]) -> ExecutionResult:
    executed = execute(
        schema.graphql, parse(document), context_value="the caller's", variable_values=variables
    )
    return executed if isinstance(executed, ExecutionResult) else await executed


async def agree(document: str, variables: dict[str, Any]) -> None:
    """The plan says what the executor says, or leaves it what is not of its type."""
    plan = planned(document)
    expected = await by_executor(document, variables)
    arguments = plan.coerce(variables)
    if arguments is None:
        assert expected.data is None
        assert expected.errors
        return
    result = await plan.run(arguments, cast("Context", "the caller's"))
    assert result.formatted == expected.formatted


@given(order=perhaps(orders))
async def test_a_plan_answers_as_the_executor_does(order: object) -> None:
    await agree(PLACE, {"order": order, "unused": 1})


@given(several=perhaps(st.lists(perhaps(orders), max_size=4)))
@example(several={"number": 1, "parts": {"name": "", "weights": 0}})
async def test_a_plan_of_a_list_of_either_kind_answers_as_the_executor_does(
    several: object,
) -> None:
    await agree(PLACE_ALL, {"of": several})


TOLD = """subscription { event: told {
  ... on Receipt { kind: __typename number colour wanted receivedAt said extra }
  ... on Refusal { number why }
} }"""

events = st.builds(
    Receipt,
    number=st.integers(-(2**31), 2**31),  # one more than GraphQL's own can be
    colour=st.sampled_from(Colour),
    wanted=st.none() | st.sampled_from(Colour),
    received_at=st.datetimes(timezones=st.just(UTC)),
    said=st.lists(st.none() | st.text(max_size=3), max_size=3),
    extra=st.none() | st.dictionaries(st.text(max_size=2), anything, max_size=2),
) | st.builds(Refusal, number=st.integers(-3, 3), why=st.none() | st.text(max_size=3))


@given(told=st.lists(events, max_size=3))
async def test_an_event_has_the_shape_that_the_executor_gives_it(
    told: list[Receipt | Refusal],
) -> None:
    shape = compile_event_shape(schema.graphql, operation(TOLD))
    assert shape is not None
    stream = subscribe(schema.graphql, parse(TOLD), context_value=told)
    assert not isinstance(stream, ExecutionResult)
    executed = [result async for result in await cast("Any", stream)]
    assert len(executed) == len(told)
    for event, result in zip(told, executed, strict=True):
        if result.errors:
            with pytest.raises(GraphQLError):
                shape(event)
        else:
            assert shape(event) == result.data


@pytest.mark.parametrize(
    "document",
    [
        "subscription { told { ... on Receipt { workedOut } } }",
        "subscription { told { ... on Refusal @skip(if: false) { number } } }",
    ],
)
def test_an_event_that_is_more_than_attributes_is_left_to_the_executor(document: str) -> None:
    assert compile_event_shape(schema.graphql, operation(document)) is None


async def test_variables_that_are_missing_are_left_to_the_executor() -> None:
    assert planned(PLACE).coerce(None) is None
    assert planned(PLACE).coerce({"another": {"number": 1}}) is None


async def test_the_error_of_a_resolver_tells_where_it_was() -> None:
    arguments = planned(PLACE).coerce({"order": {"number": 0}})
    assert arguments is not None
    result = await planned(PLACE).run(arguments, cast("Context", "the caller's"))
    assert result.data is None
    [error] = result.errors or []
    assert (error.path, error.locations) == (["place"], [(2, 3)])
    assert isinstance(error.original_error, ValueError)


BEYOND = {
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


@pytest.mark.parametrize("document", BEYOND.values(), ids=BEYOND)
def test_what_is_beyond_a_plan_is_left_to_the_executor(document: str) -> None:
    assert compile_operation(schema.graphql, operation(document)) is None


def test_heartbeats_have_a_plan() -> None:
    [recording] = [text for text in load_trusted_documents() if "recordHeartbeat(" in text]
    for document in (recording, RECORD_HEARTBEATS):
        assert compile_operation(ours.graphql, operation(document, ours)) is not None
