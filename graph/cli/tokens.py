"""The commands `node-registry token …`; a new API key is alone on standard output."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

import click
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import enrolment, token_changes, tokens
from db.access.token_changes import IssuedToken
from db.core.enums import NodeRole, NodeType, Role
from db.core.pagination import MAX_PAGE_SIZE
from db.core.tables import Token
from graph.cli.common import identify_operator, load_command_settings
from graph.core import validation
from graph.core.open_database import open_shared_database
from graph.core.terminal import echo, escape

T = TypeVar("T")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(rf"([0-9]{{1,6}})([{''.join(_UNITS)}])", re.ASCII)


class Duration(click.ParamType[timedelta]):
    """A duration such as 90d on the command line, from `minimum` to ten years."""

    name = "duration"

    def __init__(self, minimum: timedelta = timedelta(seconds=1)) -> None:
        self._minimum = minimum

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if not (match := _DURATION.fullmatch(value)):
            self.fail(f"{value!r} is not a duration such as 90d, 12h or 30m", param, ctx)
        duration = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if not self._minimum <= duration <= validation.MAX_LIFETIME:
            self.fail(f"must be at most {validation.MAX_LIFETIME.days}d, and not zero", param, ctx)
        return duration


_ROLES = click.Choice([role for role in Role if role is not Role.ENROLMENT], case_sensitive=False)
_NODE_ROLES = click.Choice(NodeRole, case_sensitive=False)
_NODE_TYPES = click.Choice(NodeType, case_sensitive=False)


@click.group()
def token() -> None:
    """Manage API keys. A new key is shown once, on standard output."""


@token.command()
@click.option("--role", type=_ROLES, required=True, help="The role of the key's holder.")
@click.option("--name", help="Name of the holder in logs and the audit trail.")
@click.option("--node", "nodes", multiple=True, help="Node that an agent may report; repeatable.")
@click.option("--expires", type=Duration(), help="Lifetime, e.g. 90d; by default unlimited.")
def create(
    *, role: Role, name: str | None, nodes: tuple[str, ...], expires: timedelta | None
) -> None:
    """Create an API key."""
    if (role is Role.AGENT) != bool(nodes):
        raise click.UsageError("--node is needed for an agent, and is for agents only")
    _print_new_token(
        _run_change(
            lambda session: token_changes.create_token(
                session,
                role=role,
                name=_check_name(name),
                nodes=[
                    validation.check_identifier("--node", node) for node in dict.fromkeys(nodes)
                ],
                lifetime=expires,
                caller=identify_operator(),
            )
        )
    )


@token.command()
@click.option("--uses", type=click.IntRange(1, validation.MAX_USES), default=1, show_default=True)
@click.option("--expires", type=Duration(), default="1d", show_default=True, help="Lifetime.")
@click.option("--name", help="Name of the holder in logs and the audit trail.")
@click.option(
    "--node-role", type=_NODE_ROLES, help="Role that the nodes must have; by default any."
)
@click.option(
    "--node-type", type=_NODE_TYPES, help="Type that the nodes must have; by default any."
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Label that the nodes may have; repeatable; by default any.",
)
@click.option(
    "--key-expires",
    type=Duration(),
    default=f"{enrolment.TOKEN_LIFETIME.days}d",
    show_default=True,
    help="Lifetime of each node's own key.",
)
def enrol(
    *,
    uses: int,
    expires: timedelta,
    name: str | None,
    node_role: NodeRole | None,
    node_type: NodeType | None,
    labels: tuple[str, ...],
    key_expires: timedelta,
) -> None:
    """Create an enrolment key, with which nodes register to get keys of their own."""
    _print_new_token(
        _run_change(
            lambda session: enrolment.create_enrolment_token(
                session,
                uses=uses,
                valid_for=expires,
                name=_check_name(name),
                node_role=node_role,
                node_type=node_type,
                labels=validation.check_labels("--label", labels) or None,
                token_lifetime=key_expires,
                caller=identify_operator(),
            )
        )
    )


@token.command("list")
@click.option("--all", "include_ended", is_flag=True, help="Include revoked and expired keys.")
def list_command(*, include_ended: bool) -> None:
    """List the valid keys, newest first."""
    rows = [_HEADINGS, *map(_format_row, asyncio.run(_list_all(include_ended=include_ended)))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo("  ".join(cells).rstrip())


@token.command()
@click.argument("id", metavar="ID")
@click.option(
    "--overlap",
    type=Duration(minimum=timedelta(0)),
    default="1h",
    show_default=True,
    help="How long the old key stays valid.",
)
def rotate(*, id: str, overlap: timedelta) -> None:  # noqa: A002  # the argument's name
    """Create a key that replaces key ID."""

    async def rotate_token(session: AsyncSession) -> IssuedToken:
        old = await tokens.get_token(session, id)
        return await token_changes.rotate_token(
            session, old.id, overlap=overlap, caller=identify_operator()
        )

    _print_new_token(_run_change(rotate_token))


@token.command()
@click.argument("id", metavar="ID")
def revoke(*, id: str) -> None:  # noqa: A002  # the argument's name
    """Revoke key ID at once; a name revokes all keys of that name."""
    revoked = _run_change(
        lambda session: token_changes.revoke_tokens(session, id, caller=identify_operator())
    )
    for token_row in revoked:
        echo(f"Revoked {_describe(token_row)}.", err=True)


def _run_change(change: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async def run() -> T:
        async with (
            open_shared_database(load_command_settings()) as database,
            database.write() as session,
        ):
            return await change(session)

    return asyncio.run(run())


async def _list_all(*, include_ended: bool) -> Sequence[Token]:
    rows: list[Token] = []
    after = None
    async with (
        open_shared_database(load_command_settings()) as database,
        database.read() as session,
    ):
        while True:
            page = await tokens.list_tokens(
                session, first=MAX_PAGE_SIZE, after=after, include_ended=include_ended
            )
            rows += page.rows
            if not page.has_next:
                return rows
            after = tokens.TOKEN_KEYSET.encode_cursor(page.rows[-1].created_at, page.rows[-1].id)


def _check_name(name: str | None) -> str | None:
    return None if name is None else validation.check_token_name("--name", name)


def _print_new_token(issued: IssuedToken) -> None:
    echo(f"Created {_describe(issued.token)}. It is shown only once.", err=True)
    echo(issued.text)


def _describe(token_row: Token) -> str:
    lifetime = (
        f"until {_format_time(token_row.expires_at)}" if token_row.expires_at else "without expiry"
    )
    return f"key {token_row.public_id}, {token_row.name!r}, role {token_row.role}, {lifetime}"


_HEADINGS = ("ID", "NAME", "ROLE", "FOR", "CREATED", "EXPIRES", "LAST USED", "REVOKED")


def _format_row(token_row: Token) -> tuple[str, ...]:
    return (
        token_row.public_id,
        escape(token_row.name),
        token_row.role,
        " ".join(_list_scope(token_row)),
        _format_time(token_row.created_at),
        _format_time(token_row.expires_at),
        _format_time(token_row.last_used_at),
        _format_time(token_row.revoked_at),
    )


def _list_scope(token_row: Token) -> Iterator[str]:
    yield from token_row.nodes
    if token_row.role is Role.ENROLMENT:
        yield f"{token_row.uses_left} more:"
    yield from (bound for bound in (token_row.node_role, token_row.node_type) if bound)
    yield from token_row.labels or ()


def _format_time(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M") if time else "-"
