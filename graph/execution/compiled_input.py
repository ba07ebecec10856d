"""Input coercion compiled once for each type: from JSON values to what a resolver receives.

A coercion handles valid values only. For any other it raises some exception, after which the
executor reports what is wrong.
"""

from collections.abc import Callable
from typing import Any

from graphql import (
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    Undefined,
    is_leaf_type,
    is_required_input_field,
)
from graphql.utilities.coerce_input_value import coerce_default_value

Coercion = Callable[[Any], Any]


def compile_coercion(kind: GraphQLInputType) -> Coercion:
    """Return the function that coerces JSON values of this type, null included where allowed."""
    if isinstance(kind, GraphQLNonNull):
        return _reject_null(_compile_nullable(kind.of_type))
    coerce = _compile_nullable(kind)
    return lambda value: None if value is None else coerce(value)


def _compile_nullable(kind: GraphQLInputType) -> Coercion:
    if isinstance(kind, GraphQLList):
        return _compile_list(compile_coercion(kind.of_type))
    if isinstance(kind, GraphQLInputObjectType):
        return _compile_object(kind)
    assert is_leaf_type(kind)  # noqa: S101  # no other kind of input type is left
    return kind.coerce_input_value


def _reject_null(coerce: Coercion) -> Coercion:
    def coerce_value(value: Any) -> Any:
        if value is None:
            raise TypeError("null")
        return coerce(value)

    return coerce_value


def _compile_list(coerce: Coercion) -> Coercion:
    """Coerce a list; a single value counts as a list of one (GraphQL, List input coercion)."""
    return lambda values: [
        coerce(value) for value in (values if isinstance(values, list) else [values])
    ]


def _compile_object(kind: GraphQLInputObjectType) -> Coercion:
    fields = {
        name: (field.out_name or name, compile_coercion(field.type))
        for name, field in kind.fields.items()
    }
    defaults = {
        field.out_name or name: default
        for name, field in kind.fields.items()
        if (default := coerce_default_value(field)) is not Undefined
    }
    required = {name for name, field in kind.fields.items() if is_required_input_field(field)}
    make = kind.out_type

    def coerce_value(fields_sent: dict[str, Any]) -> Any:
        values = dict(defaults)
        for name, value in fields_sent.items():
            own_name, coerce = fields[name]
            values[own_name] = coerce(value)
        if not fields_sent.keys() >= required:
            raise KeyError
        return make(values)

    return coerce_value
