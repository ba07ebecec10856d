"""The roles that may use a field of the API, and the nodes that an agent may act for.

Each root field of `graph.api` declares its permission (`graph.api.field_declarations`); the engine
checks it before an operation runs. Only a field's arguments tell which node an agent means, so
resolvers call `require_own_node`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from db.core.enums import Role
from db.core.errors import Forbidden
from db.core.identity import Caller


@dataclass(frozen=True, slots=True)
class Permission:
    """The roles that may use a field; those in `own_node_roles` for their own nodes only."""

    roles: frozenset[Role]
    own_node_roles: frozenset[Role] = frozenset()

    def is_granted_to(self, role: Role) -> bool:
        return role in self.roles or role in self.own_node_roles

    def __str__(self) -> str:
        if self.roles == frozenset(Role):
            return "All roles."
        roles = ", ".join(role for role in Role if role in self.roles)
        own_node_roles = ", ".join(role for role in Role if role in self.own_node_roles)
        suffix = f"; {own_node_roles} for its own nodes" if own_node_roles else ""
        return f"Roles: {roles}{suffix}."


_READERS = frozenset({Role.ROUTER, Role.VIEWER, Role.OPERATOR, Role.ADMIN})

EVERYBODY = Permission(frozenset(Role))
READERS = Permission(_READERS)
READERS_AND_OWN_AGENT = Permission(_READERS, frozenset({Role.AGENT}))
OPERATORS = Permission(frozenset({Role.OPERATOR, Role.ADMIN}))
ADMINS = Permission(frozenset({Role.ADMIN}))
REGISTRANTS = Permission(frozenset({Role.ADMIN, Role.ENROLMENT}), frozenset({Role.AGENT}))
AGENTS = Permission(frozenset({Role.AGENT}))
OWN_AGENT = Permission(frozenset({Role.ADMIN}), frozenset({Role.AGENT}))


def require_role(caller: Caller, forbidden: Mapping[Role, str]) -> None:
    """Check that the caller's role is not among those that are forbidden a field.

    `forbidden` maps a role to the first field that it may not use. Raises Forbidden.
    """
    role = caller.identity.role
    if role in forbidden:
        raise Forbidden(
            f"the role {role} may not ask for {forbidden[role]}", field=forbidden[role], role=role
        )


def require_own_node(caller: Caller, node_id: str) -> None:
    """Check that an agent acts for its own node. Raises Forbidden."""
    identity = caller.identity
    if identity.role is Role.AGENT and node_id not in identity.nodes:
        raise Forbidden(f"{identity.name} does not speak for node {node_id!r}", nodeId=node_id)


def resolve_node_id(caller: Caller, node_id: str | None) -> str | None:
    """Return the id that a registration is for: an agent with one node alone need not name it.

    Raises Forbidden as `require_own_node` does.
    """
    identity = caller.identity
    if identity.role is Role.AGENT:
        if node_id is None and len(identity.nodes) == 1:
            [node_id] = identity.nodes
        require_own_node(caller, node_id or "")
    return node_id
