"""What an examination finds: one line each, and how bad it is."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database


class Severity(StrEnum):
    """A warning is of what works, but not as it should, or not for long."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """`says` is one line; of what is not well it ends in how to mend it."""

    subject: str
    severity: Severity
    says: str


Verdict = tuple[Severity, str]
Check = Callable[[AsyncSession], Awaitable[Verdict]]


def ok(says: str) -> Verdict:
    return Severity.OK, says


def warning(says: str) -> Verdict:
    return Severity.WARNING, says


def fault(says: str) -> Verdict:
    return Severity.FAULT, says


async def findings(database: Database, checks: Mapping[str, Check]) -> AsyncIterator[Finding]:
    """In order; what cannot be looked at is a fault of its own.

    Raises Unavailable when the database is lost in the middle.
    """
    for subject, check in checks.items():
        async with database.read() as session:
            verdict = await _verdict(session, check)
        yield Finding(subject, *verdict)


async def _verdict(session: AsyncSession, check: Check) -> Verdict:
    try:
        return await check(session)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        why = str(error.orig).splitlines()[0].rpartition("'>: ")[2]
        return fault(f"cannot be looked at, {why}: mend what is said above, and try again")
