"""One subscriber's view of the change log: replayed from a revision, then live, without a seam."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from db.core.database import Database
from db.core.errors import BadInput
from db.registry import status_changes
from db.registry.node_filter import NodeFilter
from graph.live.change_feed import ChangeFeed, GapInLog
from graph.live.stream_events import ResyncRequired, StatusEvent


async def follow_changes(
    feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    *,
    after: int | None,
    bookmark_seconds: float,
) -> AsyncGenerator[Sequence[StatusEvent], None]:
    """Each change that matches, once and in order; ends with ResyncRequired where that cannot be.

    After `bookmark_seconds` in which nothing matched it says how far it has come; not while the
    feed is out of touch, for silence is what tells a reader that it may be behind. Without `after`
    it begins behind what is committed now. Raises BadInput for a revision still to come.
    """
    set_backs = feed.log_resets
    if after is not None and feed.has_kept(after):
        return _follow_from(feed, node_filter, after, set_backs, bookmark_seconds)
    async with database.read() as session:
        held = await status_changes.read_revision_range(session)
    newest = held.stop - 1
    if after is None:
        after = newest
    if after > newest:
        raise BadInput("after", "lies in the future of the change log")
    if after < held.start - 1:
        return _yield_one(_resync(newest, "the change log no longer reaches back so far"))
    return _follow_from(feed, node_filter, after, set_backs, bookmark_seconds)


async def _yield_one(event: StatusEvent) -> AsyncGenerator[Sequence[StatusEvent], None]:
    yield [event]


async def _follow_from(
    feed: ChangeFeed,
    node_filter: NodeFilter,
    position: int,
    set_backs: int,
    bookmark_seconds: float,
) -> AsyncGenerator[Sequence[StatusEvent], None]:
    clock = asyncio.get_running_loop().time
    silent_since = clock()
    live = False
    with feed.count_subscriber():
        try:
            while True:
                live = live or feed.has_kept(position) or position > feed.revision
                if live:
                    left = silent_since + bookmark_seconds - clock()
                    batch = await feed.wait_for_batch(position, set_backs, left)
                else:
                    batch = await feed.read_replay(position, set_backs)
                if batch is not None:
                    if events := await batch.list_events_after(position, node_filter):
                        yield events
                        silent_since = clock()
                    position = batch.revisions[-1]
                if clock() - silent_since >= bookmark_seconds:
                    if feed.is_connected:
                        yield [feed.make_bookmark(position)]
                    silent_since = clock()
        except GapInLog as hole:
            yield [_resync(feed.revision, str(hole))]


def _resync(revision: int, reason: str) -> ResyncRequired:
    return ResyncRequired(revision, reason)
