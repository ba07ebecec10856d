"""The live end of the change log: reads what is new once, for every subscriber of the process.

Subscribers hold no database connection, and no queue either: each is a position in the log, and
what lies behind it is kept once for all. A lost notification, a dropped connection or a pause
costs a re-read, never an event.
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

from db.core.database import Database
from db.core.errors import Unavailable
from db.registry import status_changes
from db.registry.change_listener import NO_HANDLERS, NotificationHandler, open_listener
from db.registry.node_filter import EVERY_NODE, NodeFilter
from db.registry.status_changes import LoggedChange, NodeRow
from graph.core.broadcast import Broadcast
from graph.core.single_flight import SingleFlight
from graph.live.stream_events import Bookmark, StatusChanged

log = structlog.get_logger()

BATCH_SIZE = 500
SHARED_SECONDS = 1.0
"""How long what was asked of the database for one subscriber serves the others."""

_MAX_REPLAYS = 16
_MAX_FILTERS = 256
_MAX_BACKOFF_SECONDS = 5.0


class GapInLog(Exception):
    """What comes next can no longer be told; the message says why."""


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
    """`revision` is the newest change that was read; the newest `max_lag` are kept.

    `in_touch` says whether the database would be heard if it had anything new. `set_backs` counts
    how often the log was found not to be the one that was read so far: as when a backup was
    restored, or a standby took over that had not got everything.
    """

    def __init__(
        self,
        database: Database,
        *,
        check_seconds: float,
        max_lag: int,
        others: Mapping[str, NotificationHandler] = NO_HANDLERS,
    ) -> None:
        """`others` hear what is told on other channels: a process has one connection to listen."""
        self._database = database
        self._others = others
        self._check_seconds = check_seconds
        self._max_lag = max_lag
        self._recent: dict[int, Batch] = {}  # by each of its revisions: no gap between them
        self._replays: SingleFlight[tuple[int, int], Batch | None] = SingleFlight(_MAX_REPLAYS)
        self._arrived = Broadcast()
        self._reading = database.open_connection
        self._bookmark = Bookmark(0)
        self._last: LoggedChange | None = None
        self.revision = 0
        self.is_connected = False
        self.log_resets = 0
        self.subscriber_count = 0

    async def start(self) -> None:
        async with self._database.read() as session:
            newest = await status_changes.read_revision(session)
        await self._jump_to(newest)

    async def run(self) -> None:
        """Follows the log for ever, over restarts of PostgreSQL and cut connections."""
        failures = 0
        while True:
            try:
                async with open_listener(self._database, self._others) as listener:
                    self._reading = listener.open_connection
                    newest = await listener.read_revision()
                    if not await self._is_same_log():
                        await self._handle_log_reset(newest)
                    await self.read_up_to(newest, listener.read_revision)
                    log.info("feed.listening", revision=self.revision)
                    failures, self.is_connected = 0, True
                    while True:
                        newest = await listener.wait_for_change(self._check_seconds)
                        await self.read_up_to(newest, listener.read_revision)
            except Unavailable as error:
                delay = random.uniform(0, min(_MAX_BACKOFF_SECONDS, 0.1 * 2**failures))  # noqa: S311  # no secret
                failures = min(failures + 1, 10)
                log.warning(
                    "feed.disconnected",
                    cause=repr(error.__cause__ or error),
                    retry_in_seconds=round(delay, 3),
                )
            finally:
                self.is_connected, self._reading = False, self._database.open_connection
            await asyncio.sleep(delay)

    async def read_up_to(self, told: int, ask: Callable[[], Awaitable[int]]) -> None:
        """Up to the revision that was told; one that leads nowhere is asked for again.

        News may be old, and anybody who may use the database may send false ones.
        """
        while self.revision < told and await self._read_next():
            pass
        if self.revision == told:
            return
        newest = await ask()
        if newest < self.revision:
            await self._handle_log_reset(newest)
        while self.revision < newest:
            if not await self._read_next():
                log.warning("feed.log_trimmed", read=self.revision, revision=newest)
                await self._jump_to(newest)

    @contextmanager
    def count_subscriber(self) -> Iterator[None]:
        self.subscriber_count += 1
        try:
            yield
        finally:
            self.subscriber_count -= 1

    def has_kept(self, position: int) -> bool:
        """Whether all that follows the position is still kept."""
        return position == self.revision or position + 1 in self._recent

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Returns when the revision has changed, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._arrived.wait()

    async def wait_for_batch(
        self, position: int, set_backs: int, timeout_seconds: float
    ) -> Batch | None:
        """The batch that follows the position, as soon as there is one.

        None after the timeout, or if something else has happened. Raises HoleInLog when it is no
        longer kept, or the log was set back since `set_backs` was read.
        """
        self._check_no_reset(set_backs)
        if position >= self.revision:
            await self.wait_for_change(timeout_seconds)
            self._check_no_reset(set_backs)
            if position >= self.revision:
                return None
        batch = self._recent.get(position + 1)
        if batch is None:
            raise GapInLog("the subscriber was too slow")
        return batch

    async def read_replay(self, position: int, set_backs: int) -> Batch:
        """The batch that holds what follows the position, from the log.

        Its borders are the same whoever asks: subscribers that resume together share it. Raises
        HoleInLog when the log was trimmed of it, or set back since `set_backs` was read.
        """
        start = position - position % BATCH_SIZE
        wanted = (start, min(start + BATCH_SIZE, self.revision))
        batch = await self._replays.get(wanted, partial(self._read_batch, *wanted))
        self._check_no_reset(set_backs)
        if batch is None or position + 1 not in batch.revisions:
            raise GapInLog("the change log no longer reaches back so far")
        return batch

    def make_bookmark(self, position: int) -> Bookmark:
        """One for all that have come as far."""
        if self._bookmark.revision != position:
            self._bookmark = Bookmark(position)
        return self._bookmark

    async def _read_batch(self, after: int, upto: int) -> Batch | None:
        asyncio.get_running_loop().call_later(SHARED_SECONDS, self._replays.forget, (after, upto))
        async with self._database.open_connection() as connection:
            return await read_batch(self._database, connection, after, upto=upto, limit=BATCH_SIZE)

    async def _read_next(self) -> bool:
        """False when the log holds nothing newer."""
        # Not more at once than is kept: a subscriber that is quick has to get it all.
        limit = min(BATCH_SIZE, self._max_lag)
        async with self._reading() as connection:
            batch = await read_batch(self._database, connection, self.revision, limit=limit)
        if batch is None:
            return False
        if batch.revisions.start != self.revision + 1:
            self._recent.clear()  # the log was trimmed of what lies between
        self._recent.update(dict.fromkeys(batch.revisions, batch))
        self.revision, self._last = batch.revisions[-1], batch.events[-1].change
        while len(self._recent) > self._max_lag:
            del self._recent[self.revision - len(self._recent) + 1]
        self._arrived.notify()
        return True

    async def _jump_to(self, revision: int) -> None:
        last = await self._read_change(revision)
        self._recent.clear()
        self.revision, self._last = revision, last
        self._arrived.notify()

    async def _handle_log_reset(self, revision: int) -> None:
        log.warning("feed.log_set_back", read=self.revision, revision=revision)
        await self._jump_to(revision)
        self.log_resets += 1
        self._replays = SingleFlight(_MAX_REPLAYS)

    def _check_no_reset(self, set_backs: int) -> None:
        if self.log_resets != set_backs:
            raise GapInLog("the change log was set back")

    async def _is_same_log(self) -> bool:
        """By the change read last: a revision that was lost is given anew to another change."""
        logged = await self._read_change(self.revision)
        return logged is None or logged == self._last

    async def _read_change(self, revision: int) -> LoggedChange | None:
        async with self._database.open_connection() as connection:
            logged, _ = await status_changes.list_changes_after(
                connection, revision - 1, upto=revision
            )
        return logged[0] if logged else None
