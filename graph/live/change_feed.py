"""The change feed: reads new changes of the log once for all subscribers of the process.

A subscriber holds neither a database connection nor a queue: it is a position in the log, and the
changes after it are kept once for all. A lost notification, a dropped connection or a pause costs
a re-read, never an event.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import asyncpg
import structlog

from db.core.database import Database, is_transient
from db.core.errors import Unavailable
from db.registry import status_changes
from db.registry.change_listener import (
    NO_HANDLERS,
    BadNotification,
    ChangeListener,
    NotificationHandler,
    open_listener,
)
from db.registry.node_filter import EVERY_NODE, NodeFilter
from db.registry.status_changes import LoggedChange, NodeRow
from graph.core.broadcast import Broadcast
from graph.core.item_failures import report_failure, skip_poison
from graph.core.single_flight import SingleFlight
from graph.live.stream_events import Bookmark, StatusChanged

log = structlog.get_logger()

_TASK = "change_feed"
BATCH_SIZE = 500
MAX_SKIPPED = 100
"""Consecutive changes that may be skipped because they cannot be read."""

SHARED_SECONDS = 1.0
"""Time for which a result of the database for one subscriber serves the others."""

_MAX_REPLAYS = 16
_MAX_FILTERS = 256
_MAX_BACKOFF_SECONDS = 5.0


class GapInLog(Exception):
    """The next change can no longer be delivered; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive changes of the log, with the rows of their nodes as of when they were read.

    `nodes` has the rows of removed nodes too, by which a filter matches their last changes.
    """

    database: Database
    revisions: range
    events: list[StatusChanged]
    nodes: Mapping[UUID, NodeRow]
    _matches: SingleFlight[NodeFilter, set[int]] = field(
        default_factory=lambda: SingleFlight(_MAX_FILTERS)
    )

    async def list_events_after(
        self, position: int, node_filter: NodeFilter
    ) -> list[StatusChanged]:
        """Return the events after the position that match the filter.

        Callers with equal filters share one evaluation for SHARED_SECONDS.

        Raises: Unavailable: the database did not answer.
        """
        events = self.events
        if position >= self.revisions.start:
            events = [event for event in events if event.change.revision > position]
        if node_filter == EVERY_NODE:
            return events
        matches = await self._matches.get(node_filter, partial(self._match, node_filter))
        return [event for event in events if event.change.revision in matches]

    async def _match(self, node_filter: NodeFilter) -> set[int]:
        # Thousands of batches are kept, most of a single change: their matches are not.
        asyncio.get_running_loop().call_later(SHARED_SECONDS, self._matches.forget, node_filter)
        changes = [event.change for event in self.events]
        return await status_changes.match_changes(self.database, changes, self.nodes, node_filter)


async def read_batch(
    database: Database,
    connection: asyncpg.Connection,
    after: int,
    *,
    limit: int,
    upto: int | None = None,
) -> Batch | None:
    """Return the next changes after a revision; None if there are none."""
    changes, nodes = await status_changes.list_changes_after(
        connection, after, upto=upto, limit=limit
    )
    if not changes:
        return None
    registered = {id_: node for id_, node in nodes.items() if node.removed_at is None}
    return Batch(
        database,
        range(changes[0].revision, changes[-1].revision + 1),
        [StatusChanged(change, registered.get(change.node)) for change in changes],
        nodes,
    )


class ChangeFeed:
    """Follows the log; `revision` is the newest change read, and the newest `max_lag` are kept.

    `is_connected` says whether notifications of new changes arrive. `log_resets` counts how often
    the log turned out to be another one than was read: after a backup was restored, or a standby
    without the newest changes was promoted.
    """

    def __init__(
        self,
        database: Database,
        *,
        check_seconds: float,
        max_lag: int,
        handlers: Mapping[str, NotificationHandler] = NO_HANDLERS,
    ) -> None:
        """`handlers` receive other channels: a process has only one connection for LISTEN."""
        self._database = database
        self._handlers = {
            channel: partial(_handle_notification, handler) for channel, handler in handlers.items()
        }
        self._check_seconds = check_seconds
        self._max_lag = max_lag
        self._recent: dict[int, Batch] = {}  # by each of its revisions, without a gap
        self._replays: SingleFlight[tuple[int, int], Batch | None] = SingleFlight(_MAX_REPLAYS)
        self._changed = Broadcast()
        self._open_connection = database.open_connection
        self._bookmark = Bookmark(0)
        self._last: LoggedChange | None = None
        self.revision = 0
        self.is_connected = False
        self._skipped = 0
        self.log_resets = 0
        self.subscriber_count = 0

    async def start(self) -> None:
        """Begin after the newest change."""
        async with self._database.read() as session:
            newest = await status_changes.read_revision(session)
        await self._jump_to(newest)

    async def run(self) -> None:
        """Follow the log for ever, through restarts of PostgreSQL and cut connections."""
        failures = 0
        while True:
            try:
                async with open_listener(self._database, self._handlers) as listener:
                    self._open_connection = listener.open_connection
                    newest = await listener.read_revision()
                    if not await self._is_same_log():
                        await self._handle_log_reset(newest)
                    await self.read_up_to(newest, listener.read_revision)
                    log.info("change_feed.connected", revision=self.revision)
                    failures, self.is_connected = 0, True
                    while True:
                        newest = await self._wait_for_notification(listener)
                        await self.read_up_to(newest, listener.read_revision)
            except Unavailable as error:
                delay = random.uniform(0, min(_MAX_BACKOFF_SECONDS, 0.1 * 2**failures))  # noqa: S311  # no secret
                failures = min(failures + 1, 10)
                log.warning(
                    "change_feed.disconnected",
                    cause=repr(error.__cause__ or error),
                    retry_in_seconds=round(delay, 3),
                )
            finally:
                self.is_connected, self._open_connection = False, self._database.open_connection
            await asyncio.sleep(delay)

    async def read_up_to(self, notified: int, read_newest: Callable[[], Awaitable[int]]) -> None:
        """Read up to the notified revision, or to `read_newest()` if the log does not lead there.

        A notification may be old or false: every user of the database can send one.
        """
        while self.revision < notified and await self._read_next():
            pass
        if self.revision == notified:
            return
        newest = await read_newest()
        if newest < self.revision:
            await self._handle_log_reset(newest)
        while self.revision < newest:
            if not await self._read_next():
                log.warning("change_feed.log_trimmed", read=self.revision, revision=newest)
                await self._jump_to(newest)

    @contextmanager
    def count_subscriber(self) -> Iterator[None]:
        """Count a subscriber during the block."""
        self.subscriber_count += 1
        try:
            yield
        finally:
            self.subscriber_count -= 1

    def has_kept(self, position: int) -> bool:
        """Return whether all changes after the position are still kept."""
        return position == self.revision or position + 1 in self._recent

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Return when the revision has changed, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    async def wait_for_batch(
        self, position: int, log_resets: int, timeout_seconds: float
    ) -> Batch | None:
        """Wait for the batch after the position; return None after the timeout, or earlier.

        Raises: GapInLog: the batch is no longer kept, or the log was reset since `log_resets` was
        read.
        """
        self._check_no_reset(log_resets)
        if position >= self.revision:
            await self.wait_for_change(timeout_seconds)
            self._check_no_reset(log_resets)
            if position >= self.revision:
                return None
        batch = self._recent.get(position + 1)
        if batch is None:
            raise GapInLog("the subscriber was too slow")
        return batch

    async def read_replay(self, position: int, log_resets: int) -> Batch:
        """Read the batch after the position from the log.

        Batches have fixed borders, so that subscribers that resume together share them.

        Raises: GapInLog: the log was trimmed, or was reset since `log_resets` was read.
        """
        start = position - position % BATCH_SIZE
        borders = (start, min(start + BATCH_SIZE, self.revision))
        try:
            batch = await self._replays.get(borders, partial(self._read_batch, *borders))
        except Exception as error:
            if not _is_of_a_change(error):
                raise
            report_failure(_TASK, error, after=start)
            raise GapInLog("a change in the log cannot be read") from error
        self._check_no_reset(log_resets)
        if batch is None or position + 1 not in batch.revisions:
            raise GapInLog("the change log no longer reaches back so far")
        return batch

    def make_bookmark(self, position: int) -> Bookmark:
        """Return the bookmark of a position, one object for all subscribers there."""
        if self._bookmark.revision != position:
            self._bookmark = Bookmark(position)
        return self._bookmark

    async def _wait_for_notification(self, listener: ChangeListener) -> int:
        try:
            return await listener.wait_for_change(self._check_seconds)
        except BadNotification as error:
            report_failure(_TASK, error)
            return await listener.read_revision()

    async def _read_batch(self, after: int, upto: int) -> Batch | None:
        asyncio.get_running_loop().call_later(SHARED_SECONDS, self._replays.forget, (after, upto))
        async with self._database.open_connection() as connection:
            return await read_batch(self._database, connection, after, upto=upto, limit=BATCH_SIZE)

    async def _read_next(self) -> bool:
        """Read the next batch; return False if the log has no newer change."""
        # A batch is never larger than what is kept: a quick subscriber must get all of it.
        batch = await self._read_first(min(BATCH_SIZE, self._max_lag))
        if batch is None:
            return False
        self._skipped = 0
        if batch.revisions.start != self.revision + 1:
            self._recent.clear()  # the changes in between were trimmed
        self._recent.update(dict.fromkeys(batch.revisions, batch))
        self.revision, self._last = batch.revisions[-1], batch.events[-1].change
        while len(self._recent) > self._max_lag:
            del self._recent[self.revision - len(self._recent) + 1]
        self._changed.notify()
        return True

    async def _read_first(self, limit: int) -> Batch | None:
        """Read the next changes that can be read, and skip those that cannot."""
        while True:
            try:
                async with self._open_connection() as connection:
                    return await read_batch(self._database, connection, self.revision, limit=limit)
            except Exception as error:
                if not _is_of_a_change(error):
                    raise
                if limit == 1:
                    await self._skip_change(error)
                limit = 1  # up to the change that cannot be read, one by one

    async def _skip_change(self, error: Exception) -> None:
        """Skip the next change, which cannot be read; subscribers before it must resync."""
        async with self._open_connection() as connection:
            revision = await status_changes.find_next_revision(connection, self.revision)
        self._skipped += 1
        if revision == self.revision or self._skipped > MAX_SKIPPED:
            raise error  # not one change is at fault
        report_failure(_TASK, error, revision=revision)
        self._recent.clear()
        self.revision, self._last = revision, None
        self._changed.notify()

    async def _jump_to(self, revision: int) -> None:
        last = await self._read_change(revision)
        self._recent.clear()
        self.revision, self._last = revision, last
        self._changed.notify()

    async def _handle_log_reset(self, revision: int) -> None:
        log.warning("change_feed.log_reset", read=self.revision, revision=revision)
        await self._jump_to(revision)
        self.log_resets += 1
        self._replays = SingleFlight(_MAX_REPLAYS)

    def _check_no_reset(self, log_resets: int) -> None:
        if self.log_resets != log_resets:
            raise GapInLog("the change log was reset")

    async def _is_same_log(self) -> bool:
        """Return whether the change read last is still in the log: a lost revision is reused."""
        change = await self._read_change(self.revision)
        return change is None or change == self._last

    async def _read_change(self, revision: int) -> LoggedChange | None:
        with skip_poison(_TASK, revision=revision):
            async with self._database.open_connection() as connection:
                change, _ = await status_changes.list_changes_after(
                    connection, revision - 1, upto=revision
                )
            return change[0] if change else None
        return None


def _is_of_a_change(error: Exception) -> bool:
    """Return whether one change may be at fault, rather than an outage or the whole statement."""
    whole = isinstance(error, Unavailable | asyncpg.SyntaxOrAccessError)
    return not whole and not is_transient(error)


def _handle_notification(handler: NotificationHandler, payload: str) -> None:
    with skip_poison(_TASK, payload=payload):
        handler(payload)
