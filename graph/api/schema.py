"""The schema: the types put together, and its text for schema.graphql."""

from dataclasses import MISSING
from functools import partial
from typing import Any

import strawberry
from graphql import GraphQLError, GraphQLInputObjectType, GraphQLSchema
from strawberry.schema.config import StrawberryConfig
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.execution import ExecutionContext

from graph.api.mutations import Mutation
from graph.api.queries import Query
from graph.api.scalars import SCALARS
from graph.api.subscriptions import Subscription


class Schema(strawberry.Schema):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for kind in self.graphql.type_map.values():
            if isinstance(kind, GraphQLInputObjectType):
                _make_at_once(kind)

    @property
    def graphql(self) -> GraphQLSchema:
        """graphql-core's own, for what Strawberry has no word for."""
        return self._schema

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Strawberry would log them whole, as errors; `graph.core.errors` logs what it shows."""


def _make_at_once(kind: GraphQLInputObjectType) -> None:
    """Has graphql-core make the objects of an input type as it checks what was sent.

    Strawberry would walk it all once more and look up the types of each field anew, which takes
    four times as long as all else about the arguments.
    """
    definition: StrawberryObjectDefinition = kind.extensions["strawberry-definition"]
    for field in kind.fields.values():
        field.out_name = field.extensions["strawberry-definition"].python_name
    absent = {
        field.python_name: None
        for field in definition.fields
        if field.default_value is MISSING and field.default_factory is MISSING
    }
    kind.out_type = partial(_made, definition.origin, absent)  # type: ignore[method-assign]  # the way that graphql-core has for it
    definition.from_input = _as_it_is


def _made(origin: type, absent: dict[str, None], given: dict[str, Any]) -> Any:
    return origin(**(absent | given))


def _as_it_is(_: type, value: Any, __: object) -> Any:
    return value


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(scalar_map=dict(SCALARS)),
)
