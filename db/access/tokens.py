"""The tokens of callers: whether they are valid, what they permit, when they were last used.

A token is valid until it is revoked or expires, by the database's clock.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.enums import Role
from db.core.errors import TokenNotFound
from db.core.identity import NODE_PREFIX, TOKEN_PREFIX, Identity
from db.core.pagination import Keyset, Page, make_page
from db.core.tables import TOKEN, Token
from db.core.token_format import PresentedToken

TOKEN_KEYSET = Keyset("tokens", (TOKEN.created_at, TOKEN.id), (datetime, UUID), descending=True)
"""Newest first."""


def make_valid_condition() -> ColumnElement[bool]:
    """Return the condition that a row of `tokens` is valid now."""
    unexpired = or_(TOKEN.expires_at.is_(None), TOKEN.expires_at > func.registry_now())
    return and_(TOKEN.revoked_at.is_(None), unexpired)


def to_identity(token: Token) -> Identity:
    """Return the identity that a token proves: its node's if enrolment issued it to one."""
    if token.enrolled_by is None:
        actor = f"{TOKEN_PREFIX}{token.name}"
    else:
        [node_id] = token.nodes
        actor = f"{NODE_PREFIX}{node_id}"
    return Identity(actor, token.role, frozenset(token.nodes), token.id)


async def find_valid_token(session: AsyncSession, presented: PresentedToken) -> Token | None:
    """Return the token that was presented, or None if it is unknown or not valid."""
    statement = select(Token).where(TOKEN.public_id == presented.public_id, make_valid_condition())
    token = (await session.scalars(statement)).one_or_none()
    return token if token and presented.matches(token.secret_hash) else None


# A few of thousands have ended: returning the valid ones would take ten times as long.
_FIND_ENDED = text("""
SELECT used.id FROM unnest(CAST(:ids AS uuid[])) AS used (id)
LEFT JOIN tokens t ON t.id = used.id AND t.revoked_at IS NULL
    AND (t.expires_at IS NULL OR t.expires_at > registry_now())
WHERE t.id IS NULL
""").columns(TOKEN.id)


async def find_ended_tokens(session: AsyncSession, token_ids: Sequence[UUID]) -> set[UUID]:
    """Return those of the ids whose token is not valid or unknown."""
    return set(await session.scalars(_FIND_ENDED, {"ids": token_ids}))


async def count_tokens(session: AsyncSession, role: Role) -> int:
    """Return the number of valid tokens of the role."""
    statement = select(func.count()).where(TOKEN.role == role, make_valid_condition())
    return (await session.scalars(statement)).one()


async def get_expiry(session: AsyncSession, token_id: UUID) -> datetime | None:
    """Return when the token expires; None if it never does or does not exist."""
    return await session.scalar(select(TOKEN.expires_at).where(TOKEN.id == token_id))


async def record_first_use(session: AsyncSession, token_id: UUID) -> bool:
    """Record that a token is used now, unless a use is recorded, and return whether it is valid.

    Waits for whoever rotates or revokes the token.
    """
    statement = (
        update(Token)
        .where(TOKEN.id == token_id, make_valid_condition())
        .values(last_used_at=func.coalesce(TOKEN.last_used_at, func.registry_now()))
        .returning(TOKEN.id)
    )
    return (await session.scalars(statement)).one_or_none() is not None


# A locked row is being rotated, revoked or used to enrol, which records more than this would.
_RECORD_USES = text("""
UPDATE tokens t SET last_used_at = least(u.used_at, registry_now())
FROM (
    SELECT id, used_at FROM tokens
    JOIN unnest(CAST(:ids AS uuid[]), CAST(:used_at AS timestamptz[])) AS u (id, used_at) USING (id)
    WHERE last_used_at IS NULL OR last_used_at < least(used_at, registry_now())
    FOR NO KEY UPDATE OF tokens SKIP LOCKED
) u
WHERE t.id = u.id
""")


async def record_uses(session: AsyncSession, uses: Mapping[UUID, datetime]) -> None:
    """Record the last use of each token, unless a later one is recorded already."""
    values = {"ids": list(uses), "used_at": list(uses.values())}
    await session.execute(_RECORD_USES, values)


async def list_tokens(
    session: AsyncSession, *, first: int, after: str | None, include_ended: bool
) -> Page[Token]:
    """Return a page of the valid tokens in the order of TOKEN_KEYSET, or of all of them.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of TOKEN_KEYSET.
    """
    statement = select(Token) if include_ended else select(Token).where(make_valid_condition())
    rows = await session.scalars(TOKEN_KEYSET.select_page(statement, first=first, after=after))
    return make_page(rows.all(), first)


async def get_token(session: AsyncSession, public_id: str) -> Token:
    """Return the valid token with this public id. Raises: TokenNotFound: there is none."""
    statement = select(Token).where(TOKEN.public_id == public_id, make_valid_condition())
    token = (await session.scalars(statement)).one_or_none()
    if token is None:
        raise TokenNotFound(public_id)
    return token


_PURGE = text("""
DELETE FROM tokens WHERE id IN (
    SELECT id FROM tokens
    WHERE least(revoked_at, expires_at) < registry_now() - CAST(:keep AS interval)
    LIMIT :batch FOR UPDATE SKIP LOCKED
) RETURNING id
""")


async def purge_tokens(session: AsyncSession, *, keep: timedelta, batch: int) -> int:
    """Delete at most `batch` tokens that ended longer than `keep` ago, and return how many."""
    return len((await session.execute(_PURGE, {"keep": keep, "batch": batch})).all())
