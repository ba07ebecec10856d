"""Declarations of the root types' fields: their permission, and whether their result is cached.

The permission is part of the field's description, and the engine reads both from the schema.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
)
from strawberry.types.field import StrawberryField

from db.core.enums import Role
from graph.auth.permissions import Permission

_PERMISSION = "node_registry.permission"
_CACHED_BY_SNAPSHOT = "node_registry.cached_by_snapshot"


class RootField(TypedDict):
    """The arguments of `strawberry.field` for a field of a root type."""

    description: str
    metadata: Mapping[Any, Any]


def declare(
    permission: Permission, description: str, *, cached_by_snapshot: bool = False
) -> RootField:
    """Return the arguments of `strawberry.field` that declare a root field.

    `cached_by_snapshot` says that the result depends on the node snapshot alone, so that one
    execution serves all identical queries until the next refresh.
    """
    return {
        "description": f"{description} {permission}",
        "metadata": {_PERMISSION: permission, _CACHED_BY_SNAPSHOT: cached_by_snapshot},
    }


def find_permission(schema: GraphQLSchema, root: str, name: str) -> Permission | None:
    """Return the permission of a root field, or None for introspection, which every schema has.

    Raises: KeyError: the field declares none.
    """
    metadata = _find_metadata(schema, root, name)
    if metadata is None:
        return None
    permission: Permission = metadata[_PERMISSION]
    return permission


def find_forbidden_fields(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> dict[Role, str]:
    """Return, for each role that may not run a valid operation, the first field it may not use."""
    root = schema.get_root_type(operation.operation)
    assert root is not None  # noqa: S101  # a valid operation has one
    forbidden: dict[Role, str] = {}
    for field in iterate_root_fields(document, operation):
        name = field.name.value
        permission = find_permission(schema, root.name, name)
        if permission is not None:
            for role in Role:
                if not permission.is_granted_to(role):
                    forbidden.setdefault(role, name)
    return forbidden


def is_cached_by_snapshot(schema: GraphQLSchema, operation: OperationDefinitionNode) -> bool:
    """Return whether a valid operation is a query of fields that are cached by snapshot only."""
    root = schema.query_type
    return (
        operation.operation is OperationType.QUERY
        and root is not None
        and all(
            isinstance(selection, FieldNode)
            and (metadata := _find_metadata(schema, root.name, selection.name.value)) is not None
            and metadata[_CACHED_BY_SNAPSHOT]
            for selection in operation.selection_set.selections
        )
    )


def iterate_root_fields(
    document: DocumentNode, operation: OperationDefinitionNode
) -> Iterator[FieldNode]:
    """Yield the root fields of a valid operation, through all fragments, each fragment once."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    return _iterate_fields(operation.selection_set, fragments, set())


def _iterate_fields(
    selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode], seen: set[str]
) -> Iterator[FieldNode]:
    for selection in selections.selections:
        match selection:
            case FieldNode():
                yield selection
            case InlineFragmentNode():
                yield from _iterate_fields(selection.selection_set, fragments, seen)
            case FragmentSpreadNode() if selection.name.value not in seen:
                seen.add(selection.name.value)
                spread = fragments[selection.name.value]
                yield from _iterate_fields(spread.selection_set, fragments, seen)


def _find_metadata(schema: GraphQLSchema, root: str, name: str) -> Mapping[Any, Any] | None:
    field = schema.type_map[root].fields.get(name)  # type: ignore[attr-defined]  # root types are object types
    if field is None:
        return None
    definition: StrawberryField = field.extensions["strawberry-definition"]
    return definition.metadata
