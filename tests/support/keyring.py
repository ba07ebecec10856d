"""Keys for the tests of `db`: made, used, aged; time moves by ageing rows."""

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


async def create_token(database: Database, role: Role = Role.VIEWER, **said: Any) -> IssuedToken:
    async with database.write() as session:
        return await token_changes.create_token(
            session, **{"role": role, "lifetime": DAY, "caller": ADMIN, **said}
        )


async def create_enrolment(database: Database, **said: Any) -> IssuedToken:
    async with database.write() as session:
        return await enrolment.create_enrolment_token(
            session, **{"uses": 3, "valid_for": DAY, "caller": ADMIN, **said}
        )


async def enrol(
    database: Database, enrolment_key: Token, said: Registration
) -> tuple[Node, IssuedToken]:
    """Register a node as an agent that has only an enrolment token."""
    caller = Caller(tokens.to_identity(enrolment_key), "192.0.2.9")
    async with database.write() as session:
        node, _ = await registration.register(session, said, rules=RULES, caller=caller)
        return node, await enrolment.enrol_node(session, enrolment_key.id, node, caller=caller)


async def rotate_token(database: Database, token: Token, overlap: timedelta = HOUR) -> IssuedToken:
    async with database.write() as session:
        return await token_changes.rotate_token(session, token.id, overlap=overlap, caller=ADMIN)


async def revoke_token(database: Database, named: str) -> set[UUID]:
    async with database.write() as session:
        return {
            token.id for token in await token_changes.revoke_tokens(session, named, caller=ADMIN)
        }


def parse_token_text(key: str) -> PresentedToken:
    found = parse_token(key)
    assert found is not None
    return found


async def find_token(database: Database, key: str) -> Token | None:
    async with database.read() as session:
        return await tokens.find_valid_token(session, parse_token_text(key))


async def list_valid_tokens(database: Database, *made: IssuedToken) -> list[IssuedToken]:
    async with database.read() as session:
        ended = await tokens.find_ended_tokens(session, [key.token.id for key in made])
    return [key for key in made if key.token.id not in ended]


async def use_tokens(database: Database, *made: IssuedToken) -> None:
    async with database.write() as session:
        now = (await session.scalars(text("SELECT registry_now()"))).one()
        await tokens.record_uses(session, {key.token.id: now for key in made})


async def age_tokens(database: Database, span: timedelta) -> None:
    """Makes it that much longer ago that all keys were made, used and ended."""
    instants = ("created_at", "expires_at", "revoked_at", "last_used_at")
    moved = ", ".join(f"{instant} = {instant} - CAST(:span AS interval)" for instant in instants)
    async with database.write() as session:
        await session.execute(text(f"UPDATE tokens SET {moved}"), {"span": span})  # noqa: S608  # names of ours
