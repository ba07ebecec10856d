"""The GraphQL schema, built from its root types."""

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
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for input_type in self.graphql.type_map.values():
            if isinstance(input_type, GraphQLInputObjectType):
                _construct_during_coercion(input_type)

    @property
    def graphql(self) -> GraphQLSchema:
        """The schema as graphql-core has it, for what Strawberry does not offer."""
        return self._schema

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Log nothing.

        Strawberry would log whole errors; `graph.core.errors` logs what it shows to callers.
        """


def _construct_during_coercion(input_type: GraphQLInputObjectType) -> None:
    """Make graphql-core construct the objects of an input type while it coerces their values.

    Strawberry would traverse the coerced values again and look up each field's type, which takes
    four times as long as the rest of the work on the arguments.
    """
    definition: StrawberryObjectDefinition = input_type.extensions["strawberry-definition"]
    for field in input_type.fields.values():
        field.out_name = field.extensions["strawberry-definition"].python_name
    defaults = {
        field.python_name: None
        for field in definition.fields
        if field.default_value is MISSING and field.default_factory is MISSING
    }
    input_type.out_type = partial(_construct, definition.origin, defaults)  # type: ignore[method-assign]  # graphql-core documents this way
    definition.from_input = _return_value


def _construct(origin: type, defaults: dict[str, None], values: dict[str, Any]) -> Any:
    return origin(**(defaults | values))


def _return_value(_: type, value: Any, __: object) -> Any:
    return value


schema = Schema(
    query=Query,
    mutation=Mutation,
    subscription=Subscription,
    config=StrawberryConfig(scalar_map=dict(SCALARS)),
)
