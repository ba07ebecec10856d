"""Input coercion, worked out once for a type: what a resolver gets for what came as JSON.

Of what is right alone. What is wrong raises whatever it may, and the executor says what it is.
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
    if isinstance(kind, GraphQLNonNull):
        return _never_null(_coercion_of(kind.of_type))
    coerce = _coercion_of(kind)
    return lambda value: None if value is None else coerce(value)


def _coercion_of(kind: GraphQLInputType) -> Coercion:
    if isinstance(kind, GraphQLList):
        return _each(compile_coercion(kind.of_type))
    if isinstance(kind, GraphQLInputObjectType):
        return _object(kind)
    assert is_leaf_type(kind)  # noqa: S101  # nothing else goes in
    return kind.coerce_input_value


def _never_null(coerce: Coercion) -> Coercion:
    def coerced(value: Any) -> Any:
        if value is None:
            raise TypeError("null")
        return coerce(value)

    return coerced


def _each(coerce: Coercion) -> Coercion:
    """A value by itself counts as a list of one."""
    return lambda values: [
        coerce(value) for value in (values if isinstance(values, list) else [values])
    ]


def _object(kind: GraphQLInputObjectType) -> Coercion:
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

    def coerced(given: dict[str, Any]) -> Any:
        values = dict(defaults)
        for name, value in given.items():
            own_name, coerce = fields[name]
            values[own_name] = coerce(value)
        if not given.keys() >= required:
            raise KeyError
        return make(values)

    return coerced
