"""How keys are made, rotated and revoked. The audit trail has each change and no secret."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Interval, and_, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.access.tokens import standing_condition
from db.core.enums import Role
from db.core.errors import BadInput, Forbidden, TokenNotFound
from db.core.identity import Caller
from db.core.tables import TOKEN, Token
from db.core.token_format import generate_token

MAX_NODES = 1000


@dataclass(frozen=True, slots=True)
class MadeToken:
    """A key at the only moment at which its text is known."""

    token: Token
    text: str = field(repr=False)


async def create(
    session: AsyncSession,
    *,
    role: Role,
    lifetime: timedelta | None,
    by: Caller,
    name: str | None = None,
    nodes: Sequence[str] = (),
) -> MadeToken:
    """A key of a role; one of an agent speaks for `nodes` alone. Raises BadInput."""
    if role is Role.ENROLMENT:
        raise BadInput("input.role", "an enrolment key is made another way")
    if (role is Role.AGENT) != bool(nodes):
        raise BadInput("input.nodes", "must name the nodes of an agent, and is for agents only")
    if len(nodes) > MAX_NODES:
        raise BadInput("input.nodes", f"must be at most {MAX_NODES}")
    said = {"role": role, "name": name, "nodes": list(nodes), "lifetime": lifetime}
    return await make(session, said, by=by)


async def rotate(
    session: AsyncSession, token_id: UUID, *, overlap: timedelta, by: Caller
) -> MadeToken:
    """A new key for the same; the old one stands beside it for `overlap`, never longer than before.

    A former successor that was never used ends: its text was lost. Raises Forbidden for a key that
    does not stand, or whose successor is in use, and BadInput for an enrolment key.
    """
    statement = select(Token).where(TOKEN.id == token_id, standing_condition()).with_for_update()
    old = (await session.scalars(statement)).one_or_none()
    if old is None:
        raise Forbidden("the key has been revoked, or its time is over")
    if old.role is Role.ENROLMENT:
        raise BadInput("input.id", "an enrolment key cannot be rotated: make another one")
    before = as_document(old)
    kept = {"name", "role", "nodes", "lifetime", "enrolled_by"}
    said = {**old.model_dump(include=kept), "replaces": old.id}
    await _end_unused_successors(session, old.id)
    ends = func.registry_now() + literal(overlap, Interval)
    await session.execute(
        update(Token)
        .where(TOKEN.id == old.id)
        .values(expires_at=func.least(TOKEN.expires_at, ends))
    )
    return await make(session, said, by=by, before=before)


async def _end_unused_successors(session: AsyncSession, token_id: UUID) -> None:
    await end(session, and_(TOKEN.replaces == token_id, TOKEN.last_used_at.is_(None)))
    left = select(TOKEN.public_id).where(TOKEN.replaces == token_id, standing_condition())
    if (successor := (await session.scalars(left.limit(1))).one_or_none()) is not None:
        raise Forbidden(f"the key has been rotated: {successor} is in use", token=successor)


async def revoke(session: AsyncSession, named: str, *, by: Caller) -> Sequence[Token]:
    """Ends all that stand with this public id, or this name. Raises TokenNotFound."""
    ended = await end(session, or_(TOKEN.public_id == named, TOKEN.name == named))
    if not ended:
        raise TokenNotFound(named)
    for token in ended:
        await record(session, "token.revoke", token, before=as_document(token), after=None, by=by)
    return ended


async def revoke_enrolled(session: AsyncSession, node_id: str) -> None:
    """Ends the keys that enrolment made for this node."""
    await end(session, and_(TOKEN.nodes == [node_id], TOKEN.enrolled_by.is_not(None)))


async def end(session: AsyncSession, which: ColumnElement[bool]) -> Sequence[Token]:
    """Revokes those that stand, locked in the order of their ids."""
    mine = select(TOKEN.id).where(which, standing_condition()).order_by(TOKEN.id).with_for_update()
    statement = (
        update(Token)
        .where(TOKEN.id.in_(mine))
        .values(revoked_at=func.registry_now())
        .returning(Token)
    )
    return (await session.scalars(statement)).all()


async def make(
    session: AsyncSession,
    said: Mapping[str, Any],
    *,
    by: Caller,
    lasts: timedelta | None = None,
    before: Mapping[str, Any] | None = None,
) -> MadeToken:
    """`said` are columns of Token; `before` is the document of the one that it replaces.

    It stands for `lasts`, else for its `lifetime`, else for ever.
    """
    key = generate_token()
    values = {
        **said,
        "name": said["name"] or f"{said['role']}-{key.public_id}",
        "public_id": key.public_id,
        "secret_hash": key.secret_hash,
        "created_at": func.registry_now(),
        "created_by": by.name,
        "expires_at": func.registry_now() + literal(lasts or said["lifetime"], Interval),
    }
    token = (await session.scalars(insert(Token).values(values).returning(Token))).one()
    action = "token.rotate" if before else "token.create"
    await record(session, action, token, before=before, after=as_document(token), by=by)
    return MadeToken(token, key.text)


async def record(
    session: AsyncSession,
    action: str,
    token: Token,
    *,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    by: Caller,
) -> None:
    await audit.record(
        session,
        by=by,
        action=action,
        subject=token.public_id,
        before=before,
        after=after,
    )


def as_document(token: Token) -> dict[str, Any]:
    """What the audit trail has of it: no secret, and no hash of one."""
    return token.model_dump(mode="json", exclude={"secret_hash", "last_used_at"})
