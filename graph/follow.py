"""One subscriber's view of the change log: replayed from a revision, then live, without a seam."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from db import changes
from db.changes import LoggedChange
from db.database import Database
from db.errors import BadInput
from db.filters import NodeFilter
from db.tables import Node
from graph.feed import Batch, ChangeFeed, Subscriber, SubscriberTooSlow, read_batch


@dataclass(frozen=True, slots=True)
class Changed:
    change: LoggedChange
    node: Node | None


@dataclass(frozen=True, slots=True)
class Passed:
    """Nothing that matches has happened up to this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class HoleFound:
    """What lies before this revision cannot be told without a hole."""

    revision: int
    reason: str


Event = Changed | Passed | HoleFound


async def follow(
    feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    *,
    after: int | None,
    bookmark_seconds: float,
) -> AsyncGenerator[Event, None]:
    """Each change that matches, once and in order; ends with HoleFound if that cannot be kept.

    After `bookmark_seconds` in which nothing matched it says how far it has come. Without `after`
    it begins behind what is committed now. Raises BadInput for a revision still to come.
    """
    async with database.read() as session:
        held = await changes.held_revisions(session)
    newest = held.stop - 1
    if after is None:
        after = newest
    if after > newest:
        raise BadInput("after", "lies in the future of the change log")
    if after < held.start - 1:
        return _only(HoleFound(newest, "the change log no longer reaches back so far"))
    return _follow(feed, database, node_filter, after, bookmark_seconds)


async def _only(event: Event) -> AsyncGenerator[Event, None]:
    yield event


async def _follow(
    feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    position: int,
    bookmark_seconds: float,
) -> AsyncGenerator[Event, None]:
    clock = asyncio.get_running_loop().time
    silent_since = clock()
    with feed.subscribe() as live:
        try:
            async for batch in _batches(live, database, position, bookmark_seconds):
                if batch is not None:
                    for change in await batch.matching(node_filter):
                        if change.revision > position:
                            yield Changed(change, batch.nodes.get(change.node))
                            silent_since = clock()
                    position = max(position, batch.revisions.stop - 1)
                if clock() - silent_since >= bookmark_seconds:
                    yield Passed(position)
                    silent_since = clock()
        except SubscriberTooSlow:
            yield HoleFound(feed.revision, "the subscriber was too slow")


async def _batches(
    live: Subscriber, database: Database, position: int, tick_seconds: float
) -> AsyncIterator[Batch | None]:
    """Those of the log up to where the live ones begin, then these; None when a tick has passed."""
    while position < live.start:
        batch = await read_batch(database, position, upto=live.start)
        if batch is None:
            break
        position = batch.revisions.stop - 1
        yield batch
    while True:
        try:
            batch = await live.next(tick_seconds)
        except TimeoutError:
            batch = None
        yield batch
