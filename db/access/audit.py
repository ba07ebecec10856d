"""The audit log: entries are written in the transaction of their action.

Nothing changes an entry but the count of repetitions within the hour after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Select,
    and_,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from db.access import audit_documents
from db.core.identity import Caller
from db.core.pagination import Keyset, Page, make_page
from db.core.tables import AUDIT_ENTRY, AuditEntry
from db.core.turns import read_rows

OK = "ok"
"""The outcome of an action. The outcome of a rejected one is the error's code."""

MAX_REJECTIONS_PER_MINUTE = 60
MAX_REJECTIONS_PER_HOUR = 120
"""Entries per actor, so that a client that repeats forbidden operations does not fill the log."""

OTHER_SUBJECTS = "(others)"
"""The subject of rejections that have no entry of their own."""

MAX_TEXT_BYTES = 2000
"""Bound on each text column; an index entry of PostgreSQL takes less than 2,704 bytes."""

ENTRY_KEYSET = Keyset(
    "audit", (AUDIT_ENTRY.recorded_at, AUDIT_ENTRY.id), (datetime, int), descending=True
)


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The conditions that an entry meets; None means any value.

    `since` is inclusive, and holds for the last of an entry's repetitions; `until` is exclusive.
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
            # The first condition is for the index.
            terms.append(AUDIT_ENTRY.recorded_at >= self.since - _REPEATED_WITHIN)
            last = func.coalesce(AUDIT_ENTRY.last_recorded_at, AUDIT_ENTRY.recorded_at)
            terms.append(last >= self.since)
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
    """Add the entry of an action to the transaction, or count it in the subject's newest entry.

    `before` and `after` are JSON: None before the subject was created, or after it is gone. The
    entry holds of them what `audit_documents.bound` leaves.
    """
    before, after = audit_documents.bound(before, after)
    values: dict[str, Any] = {
        **_make_common_values(caller, action, subject),
        "before": before,
        "after": after,
        "outcome": OK,
    }
    newest = _select_recent(values["subject"]).limit(1).subquery()
    repeated = select(func.repeat_audit_entry(newest.c.id).label("counted")).where(
        _has_same_values(newest.c, values)
    )
    await session.execute(_insert_unless_repeated(values, repeated))


async def record_rejection(
    session: AsyncSession, *, caller: Caller, action: str, subject: str, code: str
) -> None:
    """Add the entry of a rejection, or count it in an entry of the last hour that is the same.

    Beyond MAX_REJECTIONS_PER_MINUTE or MAX_REJECTIONS_PER_HOUR entries of the actor, it is counted
    under the subject OTHER_SUBJECTS.
    """
    await session.execute(  # rejections of an actor are counted one after the other
        select(
            func.pg_advisory_xact_lock(
                func.hashtextextended(f"audit {_bound_text(caller.name)}", 0)
            )
        )
    )
    within_limits = and_(
        *(
            select(func.count()).select_from(recent.subquery()).scalar_subquery() < maximum
            for recent, maximum in (
                (_select_rejections(caller, minutes=1), MAX_REJECTIONS_PER_MINUTE),
                (_select_rejections(caller, minutes=60), MAX_REJECTIONS_PER_HOUR),
            )
        )
    )
    for name, condition in ((subject, within_limits), (OTHER_SUBJECTS, true())):
        values: dict[str, Any] = {
            **_make_common_values(caller, action, name),
            "before": None,
            "after": None,
            "outcome": code,
        }
        same = (
            _select_recent(values["subject"])
            .where(_has_same_values(AUDIT_ENTRY, values))
            .limit(1)
            .subquery()
        )
        repeated = select(func.repeat_audit_entry(same.c.id).label("counted"))
        recorded = await session.scalar(_insert_unless_repeated(values, repeated, condition))
        if recorded:
            return


_REPEATED_WITHIN = timedelta(hours=1)
"""`repeat_audit_entry` counts in no older entry."""

_SAME = ("actor", "address", "peer_address", "action", "subject", "outcome", "before", "after")


def _select_recent(subject: str) -> Select[Any]:
    """Return the statement for the entries about a subject that may count one more."""
    return (
        select(*(AUDIT_ENTRY[name] for name in ("id", *_SAME)))
        .where(
            AUDIT_ENTRY.subject == subject,
            AUDIT_ENTRY.recorded_at > func.now() - _REPEATED_WITHIN,
        )
        .order_by(AUDIT_ENTRY.recorded_at.desc(), AUDIT_ENTRY.id.desc())
    )


def _select_rejections(caller: Caller, *, minutes: int) -> Select[Any]:
    return (
        select(AUDIT_ENTRY.id)
        .where(
            AUDIT_ENTRY.actor == _bound_text(caller.name),
            AUDIT_ENTRY.recorded_at > func.now() - timedelta(minutes=minutes),
            _IS_REJECTION,
        )
        .limit(MAX_REJECTIONS_PER_HOUR)
    )


def _has_same_values(
    columns: ReadOnlyColumnCollection[str, Any], values: Mapping[str, Any]
) -> ColumnElement[bool]:
    return and_(
        *(
            columns[name].is_not_distinct_from(literal(values[name], AUDIT_ENTRY[name].type))
            for name in _SAME
        )
    )


def _insert_unless_repeated(
    values: Mapping[str, Any], repeated: Select[Any], condition: ColumnElement[bool] | None = None
) -> CompoundSelect[Any]:
    """Return the statement that counts the entry in another one, or else inserts it.

    `repeated` selects what `repeat_audit_entry` returns for an entry that is the same, if there is
    one. A new entry is inserted only on the condition. The statement returns a row if the entry was
    recorded either way.
    """
    counted = repeated.cte("repeated")
    new = select(*(literal(value, AUDIT_ENTRY[name].type) for name, value in values.items()))
    inserted = (
        insert(AuditEntry)
        .from_select(
            list(values),
            new.where(
                ~exists(select(1).where(counted.c.counted)),
                true() if condition is None else condition,
            ),
        )
        .returning(AUDIT_ENTRY.id)
        .cte("inserted")
    )
    return union_all(
        select(counted.c.counted).where(counted.c.counted), select(true()).select_from(inserted)
    )


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
    return make_page(await read_rows(session, statement), first)


MIN_KEPT_DAYS = 7
"""The database keeps younger entries in any case."""


async def measure_oldest_age_days(session: AsyncSession) -> float:
    """Return the age of the oldest entry in days; 0 if there is none."""
    age = func.extract("epoch", func.now() - func.min(AUDIT_ENTRY.recorded_at))
    return float(await session.scalar(select(age)) or 0) / 86_400


async def trim_entries(session: AsyncSession, *, keep_days: float, batch: int) -> int:
    """Delete at most `batch` entries older than `keep_days`, oldest first, and return how many.

    The database keeps the entries of the last seven days in any case.
    """
    cutoff = func.now() - timedelta(days=keep_days)
    statement = select(func.trim_audit_log(cutoff, batch, type_=BigInteger))
    return (await session.scalars(statement)).one()


def _make_common_values(caller: Caller, action: str, subject: str) -> dict[str, str | None]:
    texts = {
        "actor": caller.name,
        "address": caller.address,
        "peer_address": caller.peer_address,
        "action": action,
        "subject": subject,
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
    }
    return {name: text and _bound_text(text) for name, text in texts.items()}


def _bound_text(text: str) -> str:
    """Return a text that PostgreSQL can store and index, whatever a caller sent."""
    stored = text.replace("\0", "?").encode("utf-8", "replace")
    return stored[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
