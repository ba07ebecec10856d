"""Tokens for the tests: helpers that create, use and age them; rows are aged to move time."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text

from db.access import enrolment, token_changes, tokens
from db.access.token_changes import IssuedToken
from db.core.database import Database
from db.core.enums import Role
from db.core.identity import Caller, Identity
from db.core.tables import Node, Token
from db.core.token_format import PresentedToken, parse_token
from db.registry import registration
from db.registry.registration import Registration
from tests.support.fleet import RULES

ADMIN = Caller(Identity("root", Role.ADMIN), "192.0.2.1")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def create_token(database: Database, role: Role = Role.VIEWER, **fields: Any) -> IssuedToken:
    async with database.write() as session:
        return await token_changes.create_token(
            session, **{"role": role, "lifetime": DAY, "caller": ADMIN, **fields}
        )


async def create_enrolment(database: Database, **fields: Any) -> IssuedToken:
    async with database.write() as session:
        return await enrolment.create_enrolment_token(
            session, **{"uses": 3, "valid_for": DAY, "caller": ADMIN, **fields}
        )


async def enrol(
    database: Database, enrolment_token: Token, request: Registration
) -> tuple[Node, IssuedToken]:
    """Register a node as an agent that has only an enrolment token."""
    caller = Caller(tokens.to_identity(enrolment_token), "192.0.2.9")
    async with database.write() as session:
        node, _ = await registration.register(session, request, rules=RULES, caller=caller)
        return node, await enrolment.enrol_node(session, enrolment_token.id, node, caller=caller)


async def rotate_token(database: Database, token: Token, overlap: timedelta = HOUR) -> IssuedToken:
    async with database.write() as session:
        return await token_changes.rotate_token(session, token.id, overlap=overlap, caller=ADMIN)


async def revoke_token(database: Database, name: str) -> set[UUID]:
    async with database.write() as session:
        return {
            token.id for token in await token_changes.revoke_tokens(session, name, caller=ADMIN)
        }


def parse_token_text(text_: str) -> PresentedToken:
    token = parse_token(text_)
    assert token is not None
    return token


async def find_token(database: Database, text_: str) -> Token | None:
    async with database.read() as session:
        return await tokens.find_valid_token(session, parse_token_text(text_))


async def list_valid_tokens(database: Database, *issued: IssuedToken) -> list[IssuedToken]:
    async with database.read() as session:
        ended_ids = await tokens.find_ended_tokens(session, [token.token.id for token in issued])
    return [token for token in issued if token.token.id not in ended_ids]


async def use_tokens(database: Database, *issued: IssuedToken) -> None:
    async with database.write() as session:
        now = (await session.scalars(text("SELECT registry_now()"))).one()
        await tokens.record_uses(session, {token.token.id: now for token in issued})


async def age_tokens(database: Database, span: timedelta) -> None:
    """Move the creation, use and end of all tokens back by the span."""
    instants = ("created_at", "expires_at", "revoked_at", "last_used_at")
    assignments = ", ".join(
        f"{instant} = {instant} - CAST(:span AS interval)" for instant in instants
    )
    async with database.write() as session:
        await session.execute(text(f"UPDATE tokens SET {assignments}"), {"span": span})  # noqa: S608  # names of ours
