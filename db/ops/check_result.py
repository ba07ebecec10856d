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
class CheckResult:
    """`says` is one line; of what is not well it ends in how to mend it."""

    subject: str
    severity: Severity
    message: str


Verdict = tuple[Severity, str]
Check = Callable[[AsyncSession], Awaitable[Verdict]]


def report_ok(message: str) -> Verdict:
    return Severity.OK, message


def report_warning(message: str) -> Verdict:
    return Severity.WARNING, message


def report_fault(message: str) -> Verdict:
    return Severity.FAULT, message


async def run_checks(database: Database, checks: Mapping[str, Check]) -> AsyncIterator[CheckResult]:
    """In order; what cannot be looked at is a fault of its own.

    Raises Unavailable when the database is lost in the middle.
    """
    for subject, check in checks.items():
        async with database.read() as session:
            verdict = await _run_check(session, check)
        yield CheckResult(subject, *verdict)


async def _run_check(session: AsyncSession, check: Check) -> Verdict:
    try:
        return await check(session)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        reason = str(error.orig).splitlines()[0].rpartition("'>: ")[2]
        return report_fault(
            f"cannot be looked at, {reason}: mend what is said above, and try again"
        )
