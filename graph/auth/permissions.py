"""Who may ask for what: declared at each field of the roots, said in its description, judged here.

An operation is judged before it runs, by its root fields; whose node an agent means is known only
from a field's arguments, and judged by the resolver with `require_own`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)
from strawberry.types.field import StrawberryField

from db.core.enums import Role
from db.core.errors import Forbidden
from db.core.identity import Caller

_RIGHT = "node_registry.right"


@dataclass(frozen=True, slots=True)
class Right:
    """`own` are the roles that may ask for it of their own nodes alone."""

    roles: frozenset[Role]
    own: frozenset[Role] = frozenset()

    def allows(self, role: Role) -> bool:
        return role in self.roles or role in self.own

    def __str__(self) -> str:
        if self.roles == frozenset(Role):
            return "All roles."
        roles = ", ".join(role for role in Role if role in self.roles)
        own = ", ".join(role for role in Role if role in self.own)
        return f"Roles: {roles}{f'; {own} for its own nodes' if own else ''}."


_READERS = frozenset({Role.ROUTER, Role.VIEWER, Role.OPERATOR, Role.ADMIN})

EVERYBODY = Right(frozenset(Role))
READERS = Right(_READERS)
READERS_AND_OWN_AGENT = Right(_READERS, frozenset({Role.AGENT}))
OPERATORS = Right(frozenset({Role.OPERATOR, Role.ADMIN}))
ADMINS = Right(frozenset({Role.ADMIN}))
REGISTERING = Right(frozenset({Role.ADMIN, Role.ENROLMENT}), frozenset({Role.AGENT}))
AGENTS = Right(frozenset({Role.AGENT}))
OWN_AGENT = Right(frozenset({Role.ADMIN}), frozenset({Role.AGENT}))


class Declared(TypedDict):
    description: str
    metadata: Mapping[Any, Any]


def allowed(right: Right, description: str) -> Declared:
    """What Strawberry is told of a root field."""
    return {"description": f"{description} {right}", "metadata": {_RIGHT: right}}


def right_of(schema: GraphQLSchema, root: str, name: str) -> Right | None:
    """None of introspection, which every schema has by itself. Raises KeyError for a field of ours
    without a right.
    """
    field = schema.type_map[root].fields.get(name)  # type: ignore[attr-defined]  # a root is an object
    if field is None:
        return None
    ours: StrawberryField = field.extensions["strawberry-definition"]
    right: Right = ours.metadata[_RIGHT]
    return right


def refused_fields(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> dict[Role, str]:
    """For each role that may not run a valid operation, the first field that it may not ask for."""
    root = schema.get_root_type(operation.operation)
    assert root is not None  # noqa: S101  # a valid operation has one
    refused: dict[Role, str] = {}
    for field in root_fields(document, operation):
        name = field.name.value
        right = right_of(schema, root.name, name)
        if right is not None:
            for role in Role:
                if not right.allows(role):
                    refused.setdefault(role, name)
    return refused


def require(caller: Caller, refused: Mapping[Role, str]) -> None:
    """Raises Forbidden for a role that is refused one of the fields."""
    role = caller.identity.role
    if role in refused:
        raise Forbidden(
            f"the role {role} may not ask for {refused[role]}", field=refused[role], role=role
        )


def require_own(caller: Caller, node_id: str) -> None:
    """Raises Forbidden for an agent that means another's node."""
    identity = caller.identity
    if identity.role is Role.AGENT and node_id not in identity.nodes:
        raise Forbidden(f"{identity.name} does not speak for node {node_id!r}", nodeId=node_id)


def meant_node(caller: Caller, node_id: str | None) -> str | None:
    """The id that a registration is for: an agent that speaks for one node alone need not name it.

    Raises Forbidden as `require_own`.
    """
    identity = caller.identity
    if identity.role is Role.AGENT:
        if node_id is None and len(identity.nodes) == 1:
            [node_id] = identity.nodes
        require_own(caller, node_id or "")
    return node_id


def root_fields(document: DocumentNode, operation: OperationDefinitionNode) -> Iterator[FieldNode]:
    """Those of a valid operation, wherever they stand; of a fragment that is used twice, once."""
    fragments = {
        definition.name.value: definition
        for definition in document.definitions
        if isinstance(definition, FragmentDefinitionNode)
    }
    return _fields(operation.selection_set, fragments, set())


def _fields(
    selections: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode], seen: set[str]
) -> Iterator[FieldNode]:
    for selection in selections.selections:
        match selection:
            case FieldNode():
                yield selection
            case InlineFragmentNode():
                yield from _fields(selection.selection_set, fragments, seen)
            case FragmentSpreadNode() if selection.name.value not in seen:
                seen.add(selection.name.value)
                spread = fragments[selection.name.value]
                yield from _fields(spread.selection_set, fragments, seen)
