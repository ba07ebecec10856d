"""The audit trail: entries are written in the transaction of their action and never changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Text,
    and_,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit_documents
from db.core.identity import Caller
from db.core.pagination import Keyset, Page, make_page
from db.core.tables import AUDIT_ENTRY, AuditEntry

OK = "ok"
"""The outcome of an action. The outcome of a rejected one is the error's code."""

MAX_REJECTIONS_PER_MINUTE = 60
"""Per actor, so that a client that repeats a forbidden operation does not fill the log."""

ENTRY_KEYSET = Keyset(
    "audit", (AUDIT_ENTRY.recorded_at, AUDIT_ENTRY.id), (datetime, int), descending=True
)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The conditions that an entry meets; None means any value.

    `since` is inclusive, `until` exclusive.
    """

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def condition(self) -> ColumnElement[bool]:
        values = {
            AUDIT_ENTRY.actor: self.actor,
            AUDIT_ENTRY.action: self.action,
            AUDIT_ENTRY.subject: self.subject,
            AUDIT_ENTRY.outcome: self.outcome,
        }
        terms = [column == value for column, value in values.items() if value is not None]
        if self.outcome not in {None, OK}:
            terms.append(_IS_REJECTION)
        if self.since is not None:
            terms.append(AUDIT_ENTRY.recorded_at >= self.since)
        if self.until is not None:
            terms.append(AUDIT_ENTRY.recorded_at < self.until)
        return and_(true(), *terms)


# As the partial index has it: with a parameter the planner would not use the index.
_IS_REJECTION: ColumnElement[bool] = AUDIT_ENTRY.outcome != literal_column(f"'{OK}'")


EVERY_ENTRY = AuditFilter()


async def record_action(
    session: AsyncSession,
    *,
    caller: Caller,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add the entry of an action to the transaction.

    `before` and `after` are JSON: None before the subject was created, or after it is gone. The
    entry holds of them what `audit_documents.bound` leaves.
    """
    before, after = audit_documents.bound(before, after)
    values = {
        **_make_common_values(caller, action, subject),
        "before": before,
        "after": after,
        "outcome": OK,
    }
    await session.execute(insert(AuditEntry).values(values))


async def record_rejection(
    session: AsyncSession, *, caller: Caller, action: str, subject: str, code: str
) -> None:
    """Add the entry of a rejection, unless the actor has MAX_REJECTIONS_PER_MINUTE of them."""
    recent = (
        select(AUDIT_ENTRY.id)
        .where(
            AUDIT_ENTRY.actor == caller.name,
            AUDIT_ENTRY.recorded_at > func.now() - timedelta(minutes=1),
            _IS_REJECTION,
        )
        .limit(MAX_REJECTIONS_PER_MINUTE)
        .subquery()
    )
    values = {**_make_common_values(caller, action, subject), "outcome": code}
    statement = insert(AuditEntry).from_select(
        list(values),
        select(*(literal(value, Text) for value in values.values())).where(
            select(func.count()).select_from(recent).scalar_subquery() < MAX_REJECTIONS_PER_MINUTE
        ),
    )
    await session.execute(statement)


def select_entries(audit_filter: AuditFilter) -> Select[Any]:
    """Return the statement for the entries that meet the filter, in no order."""
    return select(AuditEntry).where(audit_filter.condition())


async def list_entries(
    session: AsyncSession, audit_filter: AuditFilter, *, first: int, after: str | None
) -> Page[AuditEntry]:
    """Return a page of the entries that meet the filter, newest first.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of ENTRY_KEYSET.
    """
    statement = ENTRY_KEYSET.select_page(select_entries(audit_filter), first=first, after=after)
    return make_page((await session.scalars(statement)).all(), first)


async def trim_entries(session: AsyncSession, *, keep_days: float, batch: int) -> int:
    """Delete at most `batch` entries older than `keep_days`, oldest first, and return how many.

    The database keeps the entries of the last seven days in any case.
    """
    cutoff = func.now() - timedelta(days=keep_days)
    statement = select(func.trim_audit_log(cutoff, batch, type_=BigInteger))
    return (await session.scalars(statement)).one()


def _make_common_values(caller: Caller, action: str, subject: str) -> dict[str, str | None]:
    return {
        "actor": caller.name,
        "address": caller.address,
        "action": action,
        "subject": subject,
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
    }
