"""The live end of the change log: reads what is new once, for every subscriber of the process.

Subscribers hold no database connection, and no queue either: each is a position in the log, and
what lies behind it is kept once for all. A lost notification, a dropped connection or a pause
costs a re-read, never an event.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import asyncpg
import structlog

from db import changes, nodes
from db.database import Database
from db.errors import Unavailable
from db.filters import EVERY_NODE, NodeFilter
from db.listen import Listener, listening
from graph.events import Bookmark, NodeStatusChanged
from graph.once import Once
from graph.scalars import Revision

log = structlog.get_logger()

BATCH_SIZE = 500
REPLAY_SECONDS = 1.0
"""How long a part of the log that was read for one subscriber serves the others."""

_MAX_REPLAYS = 16
_MAX_FILTERS = 256
_MAX_BACKOFF_SECONDS = 5.0


class HoleInLog(Exception):
    """What comes next can no longer be told; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive changes of the log, each with its node as it stood when they were read."""

    database: Database
    revisions: range
    events: list[NodeStatusChanged]
    _matching: Once[NodeFilter, list[NodeStatusChanged]] = field(
        default_factory=lambda: Once(_MAX_FILTERS)
    )

    async def matching(self, node_filter: NodeFilter) -> list[NodeStatusChanged]:
        """Those that the filter means; the database is asked once for each filter."""
        if node_filter == EVERY_NODE:
            return self.events
        return await self._matching.get(node_filter, partial(self._ask, node_filter))

    async def _ask(self, node_filter: NodeFilter) -> list[NodeStatusChanged]:
        async with self.database.read() as session:
            wanted = await changes.matching(session, self.revisions, node_filter)
        return [event for event in self.events if event.change.revision in wanted]


async def read_batch(database: Database, after: int, *, upto: int | None = None) -> Batch | None:
    """The next changes behind a revision; None when there are none."""
    async with database.read() as session:
        logged = await changes.after(session, after, upto=upto, limit=BATCH_SIZE)
        if not logged:
            return None
        found = await nodes.by_uuid(session, list({change.node for change in logged}))
    return Batch(
        database,
        range(logged[0].revision, logged[-1].revision + 1),
        [NodeStatusChanged.of(change, found.get(change.node)) for change in logged],
    )


class ChangeFeed:
    """`revision` is the newest change that was read; the newest `max_lag` are kept."""

    def __init__(self, database: Database, *, check_seconds: float, max_lag: int) -> None:
        self._database = database
        self._check_seconds = check_seconds
        self._max_lag = max_lag
        self._recent: dict[int, Batch] = {}  # by each of its revisions: no gap between them
        self._replays: Once[tuple[int, int], Batch | None] = Once(_MAX_REPLAYS)
        self._arrived = asyncio.Event()
        self._bookmark = Bookmark(revision=Revision(0))
        self.revision = 0
        self.subscribers = 0

    async def start(self) -> None:
        async with self._database.read() as session:
            self.revision = await changes.current_revision(session)

    async def run(self) -> None:
        """Follows the log for ever, over restarts of PostgreSQL and cut connections."""
        failures = 0
        while True:
            try:
                async with listening(self._database) as listener:
                    log.info("feed.listening", revision=self.revision)
                    failures = 0
                    await self._follow(listener)
            except (
                Unavailable,
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
            ) as error:
                delay = random.uniform(0, min(_MAX_BACKOFF_SECONDS, 0.1 * 2**failures))  # noqa: S311  # no secret
                failures = min(failures + 1, 10)
                log.warning(
                    "feed.disconnected", cause=repr(error), retry_in_seconds=round(delay, 3)
                )
                await asyncio.sleep(delay)

    @contextmanager
    def subscribed(self) -> Iterator[None]:
        self.subscribers += 1
        try:
            yield
        finally:
            self.subscribers -= 1

    def holds(self, position: int) -> bool:
        """Whether all that follows the position is still kept."""
        return position == self.revision or position + 1 in self._recent

    async def moved(self, timeout_seconds: float) -> None:
        """Returns when the next change was read, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._arrived.wait()

    async def kept(self, position: int, timeout_seconds: float) -> Batch | None:
        """The batch that follows the position, as soon as there is one; None after the timeout.

        Raises HoleInLog when it is no longer kept.
        """
        if position >= self.revision:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    while position >= self.revision:
                        await self._arrived.wait()
            if position >= self.revision:
                return None
        batch = self._recent.get(position + 1)
        if batch is None:
            raise HoleInLog("the subscriber was too slow")
        return batch

    async def replayed(self, position: int) -> Batch:
        """The batch that holds what follows the position, from the log.

        Its borders are the same whoever asks: subscribers that resume together share it. Raises
        HoleInLog when the log was trimmed of it.
        """
        start = position - position % BATCH_SIZE
        wanted = (start, min(start + BATCH_SIZE, self.revision))
        batch = await self._replays.get(wanted, partial(self._read, *wanted))
        if batch is None or position + 1 not in batch.revisions:
            raise HoleInLog("the change log no longer reaches back so far")
        return batch

    def bookmark(self, position: int) -> Bookmark:
        """One for all that have come as far."""
        if self._bookmark.revision != position:
            self._bookmark = Bookmark(revision=Revision(position))
        return self._bookmark

    async def _read(self, after: int, upto: int) -> Batch | None:
        asyncio.get_running_loop().call_later(REPLAY_SECONDS, self._replays.forget, (after, upto))
        return await read_batch(self._database, after, upto=upto)

    async def _follow(self, listener: Listener) -> None:
        newest = await listener.revision()
        while True:
            while self.revision < newest:
                await self._hand_on()
            newest = await listener.wait(self._check_seconds)

    async def _hand_on(self) -> None:
        batch = await read_batch(self._database, self.revision)
        if batch is None:
            return
        if batch.revisions.start != self.revision + 1:
            self._recent.clear()  # the log was trimmed of what lies between
        self._recent.update(dict.fromkeys(batch.revisions, batch))
        self.revision = batch.revisions[-1]
        while len(self._recent) > self._max_lag:
            del self._recent[self.revision - len(self._recent) + 1]
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()
