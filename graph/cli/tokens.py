"""The commands `node-registry token …`. A key is all that they write to standard output."""

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
from graph.cli.common import configured, operator
from graph.core import validation
from graph.core.open_database import open_shared_database

T = TypeVar("T")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(rf"([0-9]{{1,6}})([{''.join(_UNITS)}])", re.ASCII)


class Duration(click.ParamType[timedelta]):
    """From `least` to ten years."""

    name = "duration"

    def __init__(self, least: timedelta = timedelta(seconds=1)) -> None:
        self._least = least

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if not (said := _DURATION.fullmatch(value)):
            self.fail(f"{value!r} is not a duration such as 90d, 12h or 30m", param, ctx)
        duration = timedelta(**{_UNITS[said[2]]: int(said[1])})
        if not self._least <= duration <= validation.MAX_LIFETIME:
            self.fail(f"must be at most {validation.MAX_LIFETIME.days}d, and not zero", param, ctx)
        return duration


_ROLES = click.Choice([role for role in Role if role is not Role.ENROLMENT], case_sensitive=False)
_NODE_ROLES = click.Choice(NodeRole, case_sensitive=False)
_NODE_TYPES = click.Choice(NodeType, case_sensitive=False)


@click.group()
def token() -> None:
    """API keys. A new one is shown once, on standard output."""


@token.command()
@click.option("--role", type=_ROLES, required=True, help="What the key may do.")
@click.option("--name", help="What the logs call who uses it.")
@click.option("--node", "nodes", multiple=True, help="A node that an agent speaks for; repeatable.")
@click.option("--expires", type=Duration(), help="Its life, e.g. 90d; without it, for ever.")
def create(
    *, role: Role, name: str | None, nodes: tuple[str, ...], expires: timedelta | None
) -> None:
    """Make an API key."""
    if (role is Role.AGENT) != bool(nodes):
        raise click.UsageError("--node is needed for an agent, and is for agents only")
    _show_made(
        _write(
            lambda session: token_changes.create_token(
                session,
                role=role,
                name=_name(name),
                nodes=[
                    validation.check_identifier("--node", node) for node in dict.fromkeys(nodes)
                ],
                lifetime=expires,
                caller=operator(),
            )
        )
    )


@token.command()
@click.option("--uses", type=click.IntRange(1, validation.MAX_USES), default=1, show_default=True)
@click.option("--expires", type=Duration(), default="1d", show_default=True, help="Its life.")
@click.option("--name", help="What the logs call who uses it.")
@click.option("--node-role", type=_NODE_ROLES, help="Of the nodes to let in; else any.")
@click.option("--node-type", type=_NODE_TYPES, help="Of the nodes to let in; else any.")
@click.option("--label", "labels", multiple=True, help="That they may have; repeatable; else any.")
@click.option(
    "--key-expires",
    type=Duration(),
    default=f"{enrolment.TOKEN_LIFETIME.days}d",
    show_default=True,
    help="The life of each node's own key.",
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
    """Make an enrolment key: nodes that register with it get keys of their own."""
    _show_made(
        _write(
            lambda session: enrolment.create_enrolment_token(
                session,
                uses=uses,
                valid_for=expires,
                name=_name(name),
                node_role=node_role,
                node_type=node_type,
                labels=validation.check_labels("--label", labels) or None,
                token_lifetime=key_expires,
                caller=operator(),
            )
        )
    )


@token.command("list")
@click.option("--all", "with_dead", is_flag=True, help="Those too that do not stand any more.")
def list_command(*, with_dead: bool) -> None:
    """List the keys that stand, newest first."""
    rows = [_HEADINGS, *map(_shown, asyncio.run(_listed(with_dead=with_dead)))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@token.command()
@click.argument("id", metavar="ID")
@click.option(
    "--overlap",
    type=Duration(least=timedelta(0)),
    default="1h",
    show_default=True,
    help="How long the old key stands beside the new one.",
)
def rotate(*, id: str, overlap: timedelta) -> None:  # noqa: A002  # the argument's name
    """Make a key that takes the place of key ID."""

    async def rotated(session: AsyncSession) -> IssuedToken:
        old = await tokens.get_token(session, id)
        return await token_changes.rotate_token(session, old.id, overlap=overlap, caller=operator())

    _show_made(_write(rotated))


@token.command()
@click.argument("id", metavar="ID")
def revoke(*, id: str) -> None:  # noqa: A002  # the argument's name
    """End key ID at once; a name ends all keys of that name."""
    ended = _write(lambda session: token_changes.revoke_tokens(session, id, caller=operator()))
    for key in ended:
        click.echo(f"Revoked {_described(key)}.", err=True)


def _write(change: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async def written() -> T:
        async with open_shared_database(configured()) as database, database.write() as session:
            return await change(session)

    return asyncio.run(written())


async def _listed(*, with_dead: bool) -> Sequence[Token]:
    listed: list[Token] = []
    after = None
    async with open_shared_database(configured()) as database, database.read() as session:
        while True:
            page = await tokens.list_tokens(
                session, first=MAX_PAGE_SIZE, after=after, include_ended=with_dead
            )
            listed += page.rows
            if not page.has_next:
                return listed
            after = tokens.TOKEN_KEYSET.encode_cursor(page.rows[-1].created_at, page.rows[-1].id)


def _name(name: str | None) -> str | None:
    return None if name is None else validation.check_token_name("--name", name)


def _show_made(made: IssuedToken) -> None:
    click.echo(f"Made {_described(made.token)}. It is shown this once.", err=True)
    click.echo(made.text)


def _described(key: Token) -> str:
    ends = f"until {_instant(key.expires_at)}" if key.expires_at else "for ever"
    return f"key {key.public_id}, {key.name!r}, role {key.role}, {ends}"


_HEADINGS = ("ID", "NAME", "ROLE", "FOR", "MADE", "EXPIRES", "LAST USED", "REVOKED")


def _shown(key: Token) -> tuple[str, ...]:
    return (
        key.public_id,
        key.name,
        key.role,
        " ".join(_scope(key)),
        _instant(key.created_at),
        _instant(key.expires_at),
        _instant(key.last_used_at),
        _instant(key.revoked_at),
    )


def _scope(key: Token) -> Iterator[str]:
    yield from key.nodes
    if key.role is Role.ENROLMENT:
        yield f"{key.uses_left} more:"
        yield from (part for part in (key.node_role, key.node_type) if part)
        yield from key.labels or ()


def _instant(instant: datetime | None) -> str:
    return instant.strftime("%Y-%m-%d %H:%M") if instant else "-"
