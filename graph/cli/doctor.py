"""The command `node-registry doctor`: it reports problems and their remedies, changing nothing."""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

import click
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import tokens
from db.core.database import Database
from db.core.enums import Role
from db.core.errors import EmbeddedServerFailed, Unavailable
from db.ops import schema_checks, server_checks
from db.ops.check_result import (
    Check,
    CheckResult,
    Severity,
    Verdict,
    report_fault,
    report_ok,
    report_warning,
    run_checks,
)
from graph.cli.common import load_command_settings
from graph.cli.host_checks import HOST_CHECKS
from graph.core.open_database import open_shared_database_url
from graph.core.settings import Settings
from graph.core.terminal import echo, escape
from graph.server.exit_errors import EXIT_ERRORS, format_exit_error


@click.command()
def doctor() -> None:
    """Check this registry and print one line per check, with the remedy of each problem.

    Exits with status 1 if there is a fault, but not for warnings. The registry may be running or
    not. Nothing is changed.
    """
    results = asyncio.run(examine(load_command_settings()))
    for finding in results:
        echo(f"{finding.severity:<8} {finding.subject:<12} {escape(finding.message)}")
    if any(finding.severity is Severity.FAULT for finding in results):
        sys.exit(1)


async def examine(settings: Settings) -> Sequence[CheckResult]:
    """Return the results of all checks; those of the database only if it can be reached."""
    results = [
        CheckResult(subject, *await check(settings)) for subject, check in HOST_CHECKS.items()
    ]
    if settings.external_database is None and not _has_cluster(settings):
        summary = f"there is none in {settings.data_dir} yet: `node-registry serve` creates it"
        return [*results, CheckResult("database", *report_warning(summary))]
    try:
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(open_shared_database_url(settings))
            database = Database(
                url, statement_timeout_seconds=settings.db_statement_timeout_seconds
            )
            stack.push_async_callback(database.close)
            await database.ping()
            results.append(CheckResult("database", *report_ok("answers")))
            results += [
                finding async for finding in run_checks(database, _list_checks(database, settings))
            ]
    except EXIT_ERRORS as error:
        results.append(CheckResult("database", *report_fault(_describe_outage(error, settings))))
    return results


def _has_cluster(settings: Settings) -> bool:
    return (settings.data_dir / "postgres").exists()


def _list_checks(database: Database, settings: Settings) -> dict[str, Check]:
    return {
        "version": server_checks.check_version,
        "writing": server_checks.check_writable,
        "connections": server_checks.make_connections_check(settings.database_connections),
        "replication": server_checks.check_replication,
        "schema": schema_checks.make_schema_check(database),
        **schema_checks.CHECKS,
        "keys": _make_token_check(settings),
    }


def _make_token_check(settings: Settings) -> Check:
    async def check(session: AsyncSession) -> Verdict:
        count = await tokens.count_tokens(session, Role.ADMIN)
        if count or not settings.is_authentication_required:
            return report_ok(f"administrators have {count} valid API keys")
        if Role.ADMIN in settings.jwt_roles.values():
            return report_ok("administrators log in with JWTs")
        return report_warning(
            "no administrator can log in: create an API key with"
            " `node-registry token create --role admin`"
        )

    return check


def _describe_outage(error: Exception, settings: Settings) -> str:
    match error:
        case EmbeddedServerFailed():
            why = " ".join([error.problem, *error.log_lines[-1:]])
            return f"{why}: see {settings.data_dir / 'postgres.log'}"
        case Unavailable():
            why = f"cannot be reached, {str(error.__cause__ or error) or 'no answer in time'}"
        case _:
            why = format_exit_error(error)
    return (
        f"{why}: check that PostgreSQL runs, and NODE_REGISTRY_DATABASE_URL or NODE_REGISTRY_DB_…"
    )
