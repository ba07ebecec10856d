"""Issuing, rotating and revoking tokens. The audit trail has each change and no secret."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Interval, and_, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.access.node_bounds import BOUND_COLUMNS
from db.access.tokens import make_valid_condition
from db.core.enums import Role
from db.core.errors import BadInput, Forbidden, TokenNotFound
from db.core.identity import Caller
from db.core.tables import TOKEN, Token
from db.core.token_format import generate_token

MAX_NODES = 1000


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token and its text, which is known only now."""

    token: Token
    text: str = field(repr=False)


async def create_token(
    session: AsyncSession,
    *,
    role: Role,
    lifetime: timedelta | None,
    caller: Caller,
    name: str | None = None,
    nodes: Sequence[str] = (),
) -> IssuedToken:
    """Issue a token of a role; an agent's token speaks for `nodes` alone.

    It never expires if `lifetime` is None. Raises: BadInput: the role is ENROLMENT, an agent has no
    nodes or more than MAX_NODES, or another role has nodes.
    """
    if role is Role.ENROLMENT:
        raise BadInput("input.role", "must not be ENROLMENT: use createEnrolmentToken")
    if (role is Role.AGENT) != bool(nodes):
        raise BadInput("input.nodes", "must name the nodes of an agent, and is for agents only")
    if len(nodes) > MAX_NODES:
        raise BadInput("input.nodes", f"must be at most {MAX_NODES}")
    columns = {"role": role, "name": name, "nodes": list(nodes), "lifetime": lifetime}
    return await issue_token(session, columns, caller=caller)


async def rotate_token(
    session: AsyncSession, token_id: UUID, *, overlap: timedelta, caller: Caller
) -> IssuedToken:
    """Issue a successor of the token, which stays valid for `overlap`, but no longer than before.

    An earlier successor that was never used is revoked: its text was lost. Raises: Forbidden: the
    token is not valid, or its successor was used and not revoked. BadInput: it is an enrolment
    token.
    """
    statement = select(Token).where(TOKEN.id == token_id, make_valid_condition()).with_for_update()
    token = (await session.scalars(statement)).one_or_none()
    if token is None:
        raise Forbidden("the token is revoked or has expired")
    if token.role is Role.ENROLMENT:
        raise BadInput("input.id", "an enrolment token cannot be rotated: create another one")
    before = to_document(token)
    inherited = {"name", "role", "nodes", "lifetime", "enrolled_by", *BOUND_COLUMNS}
    columns = {**token.model_dump(include=inherited), "replaces": token.id}
    await _revoke_unused_successors(session, token.id)
    expiry = func.registry_now() + literal(overlap, Interval)
    await session.execute(
        update(Token)
        .where(TOKEN.id == token.id)
        .values(expires_at=func.least(TOKEN.expires_at, expiry))
    )
    return await issue_token(session, columns, caller=caller, before=before)


async def _revoke_unused_successors(session: AsyncSession, token_id: UUID) -> None:
    await mark_revoked(session, and_(TOKEN.replaces == token_id, TOKEN.last_used_at.is_(None)))
    # One that expired after its use counts too: it may have been rotated itself.
    used_successor = select(TOKEN.public_id).where(
        TOKEN.replaces == token_id, TOKEN.revoked_at.is_(None), TOKEN.last_used_at.is_not(None)
    )
    if (successor := (await session.scalars(used_successor.limit(1))).one_or_none()) is not None:
        raise Forbidden(f"the token was rotated: {successor} is in use", token=successor)


async def revoke_tokens(
    session: AsyncSession, id_or_name: str, *, caller: Caller
) -> Sequence[Token]:
    """Revoke the valid tokens that have this public id or name, and return them.

    Raises: TokenNotFound: there is none.
    """
    revoked = await mark_revoked(
        session, or_(TOKEN.public_id == id_or_name, TOKEN.name == id_or_name)
    )
    if not revoked:
        raise TokenNotFound(id_or_name)
    for token in revoked:
        await record_change(
            session, "token.revoke", token, before=to_document(token), after=None, caller=caller
        )
    return revoked


async def revoke_enrolled_tokens(session: AsyncSession, node_id: str) -> None:
    """Revoke the tokens that enrolment issued to this node."""
    await mark_revoked(session, and_(TOKEN.nodes == [node_id], TOKEN.enrolled_by.is_not(None)))


async def mark_revoked(session: AsyncSession, condition: ColumnElement[bool]) -> Sequence[Token]:
    """Mark the valid tokens that meet the condition as revoked, and return them.

    They are locked in the order of their ids, so that no two transactions deadlock.
    """
    matching_ids = (
        select(TOKEN.id)
        .where(condition, make_valid_condition())
        .order_by(TOKEN.id)
        .with_for_update()
    )
    statement = (
        update(Token)
        .where(TOKEN.id.in_(matching_ids))
        .values(revoked_at=func.registry_now())
        .returning(Token)
    )
    return (await session.scalars(statement)).all()


async def issue_token(
    session: AsyncSession,
    columns: Mapping[str, Any],
    *,
    caller: Caller,
    valid_for: timedelta | None = None,
    before: Mapping[str, Any] | None = None,
) -> IssuedToken:
    """Insert a token, and record it as created, or as rotated from the document `before`.

    `columns` are values of Token. The token is valid for `valid_for`, else for its `lifetime`, else
    without end.
    """
    new_token = generate_token()
    values = {
        **columns,
        "name": columns["name"] or f"{columns['role']}-{new_token.public_id}",
        "public_id": new_token.public_id,
        "secret_hash": new_token.secret_hash,
        "created_at": func.registry_now(),
        "created_by": caller.name,
        "expires_at": func.registry_now() + literal(valid_for or columns["lifetime"], Interval),
    }
    token = (await session.scalars(insert(Token).values(values).returning(Token))).one()
    action = "token.rotate" if before else "token.create"
    await record_change(
        session, action, token, before=before, after=to_document(token), caller=caller
    )
    return IssuedToken(token, new_token.text)


async def record_change(
    session: AsyncSession,
    action: str,
    token: Token,
    *,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    caller: Caller,
) -> None:
    await audit.record_action(
        session,
        caller=caller,
        action=action,
        subject=token.public_id,
        before=before,
        after=after,
    )


def to_document(token: Token) -> dict[str, Any]:
    """Return the token as the audit trail has it: without its secret's hash."""
    return token.model_dump(mode="json", exclude={"secret_hash", "last_used_at"})
