"""What a response shows of a value, worked out once for what a document selects of it.

Of objects of plain attributes alone: whatever else is selected is Unforeseen.
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
"""Raises whatever it may for a value that is not of its type."""

OURS = "strawberry-definition"


class NotCompilable(Exception):
    """It takes the executor."""


def compile_shape(
    schema: GraphQLSchema, kind: GraphQLOutputType, selected: SelectionSetNode | None
) -> Shape:
    """Of what a valid document selects. Raises Unforeseen."""
    if isinstance(kind, GraphQLNonNull):
        return _never_null(_shape_of(schema, kind.of_type, selected))
    shape = _shape_of(schema, kind, selected)
    return lambda value: None if value is None else shape(value)


def _shape_of(
    schema: GraphQLSchema, kind: GraphQLOutputType, selected: SelectionSetNode | None
) -> Shape:
    if is_leaf_type(kind):
        return _never_null(kind.coerce_output_value)
    if isinstance(kind, GraphQLList):
        item = compile_shape(schema, kind.of_type, selected)
        return lambda values: [item(value) for value in values]
    assert selected is not None  # noqa: S101  # in a valid document only leaves select nothing
    if isinstance(kind, GraphQLObjectType):
        return _shape_of_object(schema, kind, selected)
    if isinstance(kind, GraphQLUnionType):
        shapes = {
            member.extensions[OURS].origin: _shape_of_object(schema, member, selected)
            for member in kind.types
        }
        return lambda value: shapes[type(value)](value)
    raise NotCompilable


def _never_null(shape: Shape) -> Shape:
    def shown(value: Any) -> Any:
        result = None if value is None else shape(value)
        if result is None:
            raise TypeError("null where the schema has none")
        return result

    return shown


def _shape_of_object(
    schema: GraphQLSchema, kind: GraphQLObjectType, selected: SelectionSetNode
) -> Shape:
    fields = [
        (key, *_field(schema, kind, node))
        for key, node in collect_fields(schema, kind, selected).items()
    ]
    return lambda value: {key: shape(read(value)) for key, read, shape in fields}


def _field(
    schema: GraphQLSchema, kind: GraphQLObjectType, node: FieldNode
) -> tuple[Callable[[Any], Any], Shape]:
    if node.name.value == "__typename":
        return lambda _: kind.name, str
    field = kind.fields[node.name.value]
    ours = field.extensions[OURS]
    if not ours.is_basic_field:
        raise NotCompilable
    return attrgetter(ours.python_name), compile_shape(schema, field.type, node.selection_set)


def collect_fields(
    schema: GraphQLSchema, kind: GraphQLObjectType, selected: SelectionSetNode
) -> dict[str, FieldNode]:
    """What is selected of an object, by the names in the response. Raises Unforeseen."""
    fields: dict[str, FieldNode] = {}
    for selection in selected.selections:
        if selection.directives:
            raise NotCompilable
        if isinstance(selection, FieldNode):
            found = {(selection.alias or selection.name).value: selection}
        elif isinstance(selection, InlineFragmentNode):
            found = _fields_of_fragment(schema, kind, selection)
        else:
            raise NotCompilable
        if fields.keys() & found.keys():
            raise NotCompilable  # they would have to be merged
        fields |= found
    return fields


def _fields_of_fragment(
    schema: GraphQLSchema, kind: GraphQLObjectType, fragment: InlineFragmentNode
) -> dict[str, FieldNode]:
    condition = fragment.type_condition
    if condition is None or condition.name.value == kind.name:
        return collect_fields(schema, kind, fragment.selection_set)
    if is_object_type(schema.get_type(condition.name.value)):
        return {}
    raise NotCompilable
