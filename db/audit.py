"""The audit trail: written in the transaction of what it tells, and never changed."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.tables import AuditEntry


async def record(
    session: AsyncSession,
    *,
    actor: str,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """`before` and `after` are JSON; None where the subject was made or is gone."""
    await session.execute(
        insert(AuditEntry).values(
            actor=actor, action=action, subject=subject, before=before, after=after
        )
    )
