"""The results of checks: one line each, with its severity."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database


class Severity(StrEnum):
    """The severity of a result. A warning means: it works, but badly or not for long."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check. `message` is one line; if it is not OK, it ends in the remedy."""

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
    """Run the checks in order, and yield their results; a check that fails to run is a fault.

    Raises: Unavailable: the connection to the database was lost.
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
            f"cannot be checked, {reason}: remedy what is reported above, and try again"
        )
