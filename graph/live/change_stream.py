"""One subscriber's stream of the change log: a replay from a revision, then live changes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from db.core.database import Database
from db.core.errors import BadInput
from db.registry import status_changes
from db.registry.node_filter import NodeFilter
from graph.live.change_feed import ChangeFeed, GapInLog
from graph.live.stream_events import ResyncRequired, StatusEvent


async def follow_changes(
    change_feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    *,
    after: int | None,
    bookmark_seconds: float,
) -> AsyncGenerator[Sequence[StatusEvent], None]:
    """Return a stream of each matching change, once and in order.

    It ends with ResyncRequired where it cannot go on without a gap. After `bookmark_seconds`
    without a match it yields a bookmark, except while the change feed is disconnected: silence then
    tells the reader that it may be behind. Without `after` it begins after the newest committed
    change.

    Raises: BadInput: `after` is a future revision. Unavailable: the database did not answer.
    """
    log_resets = change_feed.log_resets
    if after is not None and change_feed.has_kept(after):
        return _follow_from(change_feed, node_filter, after, log_resets, bookmark_seconds)
    async with database.read() as session:
        kept_revisions = await status_changes.read_revision_range(session)
    newest = kept_revisions.stop - 1
    if after is None:
        after = newest
    if after > newest:
        raise BadInput("after", "lies in the future of the change log")
    if after < kept_revisions.start - 1:
        return _yield_one(_resync(newest, "the change log no longer reaches back so far"))
    return _follow_from(change_feed, node_filter, after, log_resets, bookmark_seconds)


async def _yield_one(event: StatusEvent) -> AsyncGenerator[Sequence[StatusEvent], None]:
    yield [event]


async def _follow_from(
    change_feed: ChangeFeed,
    node_filter: NodeFilter,
    position: int,
    log_resets: int,
    bookmark_seconds: float,
) -> AsyncGenerator[Sequence[StatusEvent], None]:
    clock = asyncio.get_running_loop().time
    last_event_at = clock()
    live = False
    with change_feed.count_subscriber():
        try:
            while True:
                live = live or change_feed.has_kept(position) or position > change_feed.revision
                if live:
                    timeout_seconds = last_event_at + bookmark_seconds - clock()
                    batch = await change_feed.wait_for_batch(position, log_resets, timeout_seconds)
                else:
                    batch = await change_feed.read_replay(position, log_resets)
                if batch is not None:
                    if events := await batch.list_events_after(position, node_filter):
                        yield events
                        last_event_at = clock()
                    position = batch.revisions[-1]
                if clock() - last_event_at >= bookmark_seconds:
                    if change_feed.is_connected:
                        yield [change_feed.make_bookmark(position)]
                    last_event_at = clock()
        except GapInLog as gap:
            yield [_resync(change_feed.revision, str(gap))]


def _resync(revision: int, reason: str) -> ResyncRequired:
    return ResyncRequired(revision, reason)
