"""The live end of the change log: reads what is new once and hands it to every subscriber.

Subscribers hold no database connection. A lost notification, a dropped connection or a pause
costs a re-read, never an event; only a subscriber too slow for its queue has to start anew.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import structlog

from db import changes, nodes
from db.changes import LoggedChange
from db.database import Database
from db.errors import Unavailable
from db.filters import EVERY_NODE, NodeFilter
from db.listen import Listener, listening
from db.tables import Node

log = structlog.get_logger()

BATCH_SIZE = 500
_MAX_BACKOFF_SECONDS = 5.0


class SubscriberTooSlow(Exception):
    """The queue ran over: changes were dropped, and the subscriber cannot go on without a hole."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive changes of the log, with the nodes as they stood when it was read."""

    database: Database
    changes: list[LoggedChange]
    nodes: dict[UUID, Node]
    _matching: dict[NodeFilter, asyncio.Task[set[int]]] = field(default_factory=dict)

    @property
    def revisions(self) -> range:
        return range(self.changes[0].revision, self.changes[-1].revision + 1)

    async def matching(self, node_filter: NodeFilter) -> list[LoggedChange]:
        """The changes that the filter means; the database is asked once for each filter."""
        if node_filter == EVERY_NODE:
            return self.changes
        if node_filter not in self._matching:
            self._matching[node_filter] = asyncio.create_task(self._ask(node_filter))
        revisions = await asyncio.shield(self._matching[node_filter])
        return [change for change in self.changes if change.revision in revisions]

    async def _ask(self, node_filter: NodeFilter) -> set[int]:
        async with self.database.read() as session:
            return await changes.matching(session, self.revisions, node_filter)


async def read_batch(database: Database, after: int, *, upto: int | None = None) -> Batch | None:
    """The next changes behind a revision; None when there are none."""
    async with database.read() as session:
        logged = await changes.after(session, after, upto=upto, limit=BATCH_SIZE)
        if not logged:
            return None
        found = await nodes.by_uuid(session, list({change.node for change in logged}))
    return Batch(database, logged, found)


class Subscriber:
    """One reader of the feed; `start` is the revision behind which its batches begin."""

    def __init__(self, start: int, queue_size: int) -> None:
        self.start = start
        self._queue: asyncio.Queue[Batch | None] = asyncio.Queue(queue_size)
        self._too_slow = False

    async def next(self, timeout_seconds: float) -> Batch:
        """Raises TimeoutError when nothing comes in time, SubscriberTooSlow after an overflow."""
        if self._too_slow:
            raise SubscriberTooSlow
        async with asyncio.timeout(timeout_seconds):
            batch = await self._queue.get()
        if batch is None:
            raise SubscriberTooSlow
        return batch

    def offer(self, batch: Batch) -> None:
        if self._queue.full():
            self.drop()
        elif not self._too_slow:
            self._queue.put_nowait(batch)

    def drop(self) -> None:
        """Gives back the memory of what was not read, and tells the reader."""
        self._too_slow = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)


class ChangeFeed:
    """`revision` is the newest change that was handed on; `start` before the first subscriber."""

    def __init__(self, database: Database, *, check_seconds: float, queue_size: int) -> None:
        self._database = database
        self._check_seconds = check_seconds
        self._queue_size = queue_size
        self._subscribers: set[Subscriber] = set()
        self.revision = 0

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

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
    def subscribe(self) -> Iterator[Subscriber]:
        subscriber = Subscriber(self.revision, self._queue_size)
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

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
        trimmed = batch.revisions.start != self.revision + 1
        self.revision = batch.revisions.stop - 1
        for subscriber in self._subscribers:
            if trimmed:
                subscriber.drop()
            else:
                subscriber.offer(batch)
