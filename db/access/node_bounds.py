"""The role, type and labels that a token allows its nodes, and that bind them for its lifetime.

An enrolment token names them. The token of each node that it enrols has them too, and so has each
token that replaces that one.
"""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from db.access.tokens import make_valid_condition
from db.core.enums import NodeRole, NodeType, Role
from db.core.errors import Forbidden, Unauthenticated
from db.core.identity import Identity
from db.core.tables import TOKEN, Token

BOUND_COLUMNS = frozenset({"node_role", "node_type", "labels"})
"""The columns of a token's row that bind its nodes; None stands for any value."""


async def require_allowed_registration(
    session: AsyncSession,
    identity: Identity,
    node_role: NodeRole,
    node_type: NodeType,
    labels: Sequence[str] | None,
) -> None:
    """Check that an agent's token allows what its node is registered as; labels of None stay.

    Raises: Forbidden: it does not; the error names the input field. Unauthenticated: the token has
    ended, which its process has not noticed yet.
    """
    if identity.role is not Role.AGENT or identity.token_id is None:
        return
    statement = select(Token).where(TOKEN.id == identity.token_id, make_valid_condition())
    token = (await session.scalars(statement)).one_or_none()
    if token is None:
        raise Unauthenticated("the token is revoked or has expired")
    require_within_bounds(token, node_role, node_type, labels or ())


def require_within_bounds(
    token: Token, node_role: NodeRole, node_type: NodeType, labels: Sequence[str]
) -> None:
    """Check that the token allows a node of this kind. Raises Forbidden with the input field."""
    kind = "enrolment token" if token.role is Role.ENROLMENT else "node's token"
    if token.node_role not in {None, node_role}:
        raise Forbidden(f"the {kind} is for the role {token.node_role}", field="input.role")
    if token.node_type not in {None, node_type}:
        raise Forbidden(f"the {kind} is for the type {token.node_type}", field="input.type")
    if token.labels is not None and (excess := set(labels) - set(token.labels)):
        raise Forbidden(f"the {kind} is not for the label {min(excess)!r}", field="input.labels")
