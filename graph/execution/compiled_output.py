"""Output compiled once for each selection set: from a resolved object to its part of the response.

Only selections of plain attributes can be compiled: any other raises NotCompilable.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from graphql import (
    FieldNode,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLUnionType,
    InlineFragmentNode,
    SelectionSetNode,
    is_leaf_type,
    is_object_type,
)

Shape = Callable[[Any], Any]
"""Turns a resolved value into JSON; raises some exception for a value that is not of its type."""

STRAWBERRY_DEFINITION = "strawberry-definition"


class NotCompilable(Exception):
    """A selection or operation that only the executor can run."""


def compile_shape(
    schema: GraphQLSchema, kind: GraphQLOutputType, selected: SelectionSetNode | None
) -> Shape:
    """Return the shape of a selection in a valid document. Raises NotCompilable."""
    if isinstance(kind, GraphQLNonNull):
        return _reject_null(_compile_nullable(schema, kind.of_type, selected))
    shape = _compile_nullable(schema, kind, selected)
    return lambda value: None if value is None else shape(value)


def _compile_nullable(
    schema: GraphQLSchema, kind: GraphQLOutputType, selected: SelectionSetNode | None
) -> Shape:
    if is_leaf_type(kind):
        return _reject_null(kind.coerce_output_value)
    if isinstance(kind, GraphQLList):
        item = compile_shape(schema, kind.of_type, selected)
        return lambda values: [item(value) for value in values]
    assert selected is not None  # noqa: S101  # valid documents select fields of everything but leaves
    if isinstance(kind, GraphQLObjectType):
        return _compile_object(schema, kind, selected)
    if isinstance(kind, GraphQLUnionType):
        shapes = {
            member.extensions[STRAWBERRY_DEFINITION].origin: _compile_object(
                schema, member, selected
            )
            for member in kind.types
        }
        return lambda value: shapes[type(value)](value)
    raise NotCompilable


def _reject_null(shape: Shape) -> Shape:
    def shape_value(value: Any) -> Any:
        result = None if value is None else shape(value)
        if result is None:
            raise TypeError("null for a non-null type")
        return result

    return shape_value


def _compile_object(
    schema: GraphQLSchema, kind: GraphQLObjectType, selected: SelectionSetNode
) -> Shape:
    fields = [
        (key, *_compile_field(schema, kind, node))
        for key, node in collect_fields(schema, kind, selected).items()
    ]
    return lambda value: {key: shape(read(value)) for key, read, shape in fields}


def _compile_field(
    schema: GraphQLSchema, kind: GraphQLObjectType, node: FieldNode
) -> tuple[Callable[[Any], Any], Shape]:
    if node.name.value == "__typename":
        return lambda _: kind.name, str
    field = kind.fields[node.name.value]
    definition = field.extensions[STRAWBERRY_DEFINITION]
    if not definition.is_basic_field:
        raise NotCompilable
    return attrgetter(definition.python_name), compile_shape(schema, field.type, node.selection_set)


def collect_fields(
    schema: GraphQLSchema, kind: GraphQLObjectType, selected: SelectionSetNode
) -> dict[str, FieldNode]:
    """Return the selected fields by their response keys. Raises NotCompilable."""
    fields: dict[str, FieldNode] = {}
    for selection in selected.selections:
        if selection.directives:
            raise NotCompilable
        if isinstance(selection, FieldNode):
            selected_fields = {(selection.alias or selection.name).value: selection}
        elif isinstance(selection, InlineFragmentNode):
            selected_fields = _collect_fragment_fields(schema, kind, selection)
        else:
            raise NotCompilable
        if fields.keys() & selected_fields.keys():
            raise NotCompilable  # the executor merges them
        fields |= selected_fields
    return fields


def _collect_fragment_fields(
    schema: GraphQLSchema, kind: GraphQLObjectType, fragment: InlineFragmentNode
) -> dict[str, FieldNode]:
    condition = fragment.type_condition
    if condition is None or condition.name.value == kind.name:
        return collect_fields(schema, kind, fragment.selection_set)
    if is_object_type(schema.get_type(condition.name.value)):
        return {}
    raise NotCompilable
