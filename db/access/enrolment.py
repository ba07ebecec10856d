"""Enrolment: how a node without a token gets one.

Many agents share an enrolment token. It enrols a bounded number of nodes, of the role, type and
labels that it names; each node gets a token that speaks for this node alone and is bound to the
same role, type and labels.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import token_changes
from db.access.node_bounds import BOUND_COLUMNS, require_within_bounds
from db.access.token_changes import IssuedToken
from db.access.tokens import make_valid_condition
from db.core.enums import NodeRole, NodeType, Role
from db.core.errors import Forbidden
from db.core.identity import Caller
from db.core.tables import TOKEN, Node, Token

TOKEN_LIFETIME = timedelta(days=90)


async def create_enrolment_token(
    session: AsyncSession,
    *,
    uses: int,
    valid_for: timedelta,
    caller: Caller,
    name: str | None = None,
    node_role: NodeRole | None = None,
    node_type: NodeType | None = None,
    labels: Sequence[str] | None = None,
    token_lifetime: timedelta = TOKEN_LIFETIME,
) -> IssuedToken:
    """Issue an enrolment token for `uses` nodes. A role, type or labels of None means any.

    `valid_for` is how long it enrols; `token_lifetime` is that of the nodes' tokens.
    """
    values = {
        "role": Role.ENROLMENT,
        "name": name,
        "lifetime": token_lifetime,
        "uses_left": uses,
        "node_role": node_role,
        "node_type": node_type,
        "labels": None if labels is None else list(labels),
    }
    return await token_changes.issue_token(session, values, caller=caller, valid_for=valid_for)


async def enrol_node(
    session: AsyncSession, enrolment_id: UUID, node: Node, *, caller: Caller
) -> IssuedToken:
    """Issue the token of a node that this transaction has registered, and count one use.

    The registration has rejected a node for which another run of an agent sends heartbeats; this
    rejects a node that has a valid token. If that token was issued to the same run and never used,
    the response was lost: a new token replaces it, and no further use is counted. Raises:
    Forbidden: the enrolment token is not valid, has no use left or is not for such a node, or the
    node has a token.
    """
    enrolment = await _lock_enrolment_token(session, enrolment_id)
    require_within_bounds(enrolment, node.node_role, node.node_type, node.labels)
    held_tokens = await _list_node_tokens(session, node.node_id)
    if not all(_is_unreceived(token, enrolment, node) for token in held_tokens):
        raise Forbidden(
            f"{node.node_id!r} already has a token: use it, or have it revoked", nodeId=node.node_id
        )
    if held_tokens:
        await token_changes.mark_revoked(session, TOKEN.id.in_([token.id for token in held_tokens]))
    elif not enrolment.uses_left:
        raise Forbidden("the enrolment token has no use left")
    uses_taken = 0 if held_tokens else 1
    await session.execute(
        update(Token)
        .where(TOKEN.id == enrolment.id)
        .values(uses_left=TOKEN.uses_left - uses_taken, last_used_at=func.registry_now())
    )
    values = {
        "role": Role.AGENT,
        "name": node.node_id,
        "nodes": [node.node_id],
        "lifetime": enrolment.lifetime,
        "enrolled_by": enrolment.id,
        **enrolment.model_dump(include=set(BOUND_COLUMNS)),
    }
    return await token_changes.issue_token(session, values, caller=caller)


async def _lock_enrolment_token(session: AsyncSession, enrolment_id: UUID) -> Token:
    """Lock the enrolment token until the commit, so that one transaction gets its last use."""
    statement = (
        select(Token)
        .where(
            TOKEN.id == enrolment_id,
            TOKEN.role == Role.ENROLMENT,
            make_valid_condition(),
        )
        .with_for_update()
    )
    enrolment = (await session.scalars(statement)).one_or_none()
    if enrolment is None:
        raise Forbidden("the enrolment token is revoked or has expired")
    return enrolment


async def _list_node_tokens(session: AsyncSession, node_id: str) -> Sequence[Token]:
    """Return the valid tokens that speak for the node."""
    statement = select(Token).where(TOKEN.nodes.contains([node_id]), make_valid_condition())
    return (await session.scalars(statement)).all()


def _is_unreceived(token: Token, enrolment: Token, node: Node) -> bool:
    """Return whether this run of the agent asked for the token and did not receive it."""
    same_run = node.boot_since is not None and token.created_at >= node.boot_since
    unused = token.last_used_at is None and token.replaces is None
    return same_run and unused and token.enrolled_by == enrolment.id
