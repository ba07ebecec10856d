"""Audit entries of rejected mutations, written even when the caller leaves at once."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from db.access import audit
from db.core.database import Database
from db.core.errors import Unavailable
from db.core.identity import ANONYMOUS, Caller
from graph.core.item_failures import skip_poison

log = structlog.get_logger()

MAX_PENDING = 100
"""Entries being written at once; the caller of a further one waits for its entry."""


class Attempt(NamedTuple):
    """The action that a mutation would have performed, and its subject."""

    action: str
    subject: str


class RejectionLog:
    """Writes audit entries of rejected mutations of known callers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: set[asyncio.Task[None]] = set()

    async def record(self, caller: Caller, code: str, attempts: Sequence[Attempt]) -> None:
        """Write an entry for each attempt. One that cannot be written is logged and lost."""
        if caller.identity is ANONYMOUS or not attempts:
            return
        if len(self._pending) >= MAX_PENDING:
            await self._write(caller, code, attempts)
            return
        task = asyncio.create_task(self._write(caller, code, attempts))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        await asyncio.shield(task)  # a caller that leaves does not cancel its entry

    async def drain(self) -> None:
        """Return when all entries are written, or lost to the database's own time limits."""
        await asyncio.gather(*self._pending, return_exceptions=True)

    async def _write(self, caller: Caller, code: str, attempts: Sequence[Attempt]) -> None:
        for action, subject in attempts:
            entry = {"action": action, "subject": subject}
            try:
                with skip_poison("rejection_log", actor=caller.name, code=code, **entry):
                    async with self._database.write() as session:
                        await audit.record_rejection(session, caller=caller, code=code, **entry)
            except Unavailable:
                log.warning("audit.rejection_lost", actor=caller.name, code=code, **entry)
