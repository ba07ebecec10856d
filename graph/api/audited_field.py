"""Mutations that were refused: the audit trail tells of them too, if it is known who asked."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import structlog
from graphql import FieldNode, value_from_ast_untyped
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver
from strawberry.utils.str_converters import to_camel_case

from db.access import audit
from db.core.database import Database
from db.core.errors import Forbidden, RegistryError, Unavailable
from db.core.identity import ANONYMOUS, Caller
from db.core.token_format import redacted
from graph.api.context import Context, Info
from graph.auth.permissions import root_fields
from graph.execution.document_cache import Operation

log = structlog.get_logger()

MAX_OF_ONE_OPERATION = 10
MAX_UNDER_WAY = 100
_ENUMS = {"role", "type"}
_MAX_LENGTH = 255


class Attempt(NamedTuple):
    action: str
    subject: str


class Refusals:
    """Writes them down, though whoever was refused may leave at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writing: set[asyncio.Task[None]] = set()

    async def record(self, by: Caller, code: str, attempts: Sequence[Attempt]) -> None:
        if by.identity is ANONYMOUS or not attempts:
            return
        if len(self._writing) >= MAX_UNDER_WAY:  # whose callers may be gone: this one has to stay
            await self._write(by, code, attempts)
            return
        task = asyncio.create_task(self._write(by, code, attempts))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        await asyncio.shield(task)

    async def drain(self) -> None:
        """Until all are written, or lost to the database's own limits of time."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, by: Caller, code: str, attempts: Sequence[Attempt]) -> None:
        for action, subject in attempts:
            entry = {"action": action, "subject": subject}
            try:
                async with self._database.write() as session:
                    await audit.record_refusal(session, by=by, code=code, **entry)
            except Unavailable:
                log.warning("audit.refusal_lost", actor=by.name, code=code, **entry)


class Audited(FieldExtension):
    """Belongs on every mutation but heartbeats, whose own statements tell of what was done.

    `subject` are the fields of its input that name what it is done to. An outage is no refusal.
    """

    def __init__(self, action: str, *subject: str) -> None:
        self.action, self.subject = action, subject

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: Info, **given: Any
    ) -> Any:
        try:
            return await next_(source, info, **given)
        except Unavailable:
            raise
        except RegistryError as refused:
            said = {name: getattr(given["input"], name) for name in self.subject}
            await info.context.refusals.record(info.context.caller, refused.code, [self.tell(said)])
            raise

    def tell(self, said: Mapping[str, object]) -> Attempt:
        return Attempt(self.action, "/".join(map(_name, said, said.values())))


async def record_forbidden(
    context: Context, operation: Operation, variables: Mapping[str, Any] | None
) -> None:
    """Of an operation that was refused before it ran: its root fields that change something."""
    document = operation.document
    root = document.schema.get_root_type(operation.kind)
    assert root is not None  # noqa: S101  # a valid operation has one
    attempts = []
    for node in islice(root_fields(document.node, operation.node), MAX_OF_ONE_OPERATION):
        field = root.fields.get(node.name.value)  # None of introspection
        ours = field and field.extensions["strawberry-definition"]
        for audited in ours.extensions if ours else ():
            if isinstance(audited, Audited):
                given = _input(node, variables)
                said = {name: given.get(to_camel_case(name)) for name in audited.subject}
                attempts.append(audited.tell(said))
    await context.refusals.record(context.caller, Forbidden.code, attempts)


def _input(field: FieldNode, variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """As it was sent: nothing of it was checked but its types, and of variables not even those."""
    for argument in field.arguments or ():
        if argument.name.value == "input":
            with suppress(ValueError):  # a number of too many digits
                value = value_from_ast_untyped(argument.value, dict(variables or {}))
                return value if isinstance(value, Mapping) else {}
    return {}


def _name(field: str, value: object) -> str:
    if not isinstance(value, str):
        return ""
    text = value.lower() if field in _ENUMS else value
    # Who revokes a key may well have given all of it.
    return redacted(text).encode("utf-8", "replace").decode().replace("\0", "?")[:_MAX_LENGTH]
