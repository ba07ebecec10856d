"""The change feed: each reader gets every change once and in order, or a resync."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import Unavailable
from db.registry import nodes, status_changes
from db.registry.change_listener import open_listener
from db.registry.node_filter import EVERY_NODE, NodeFilter
from db.registry.status_changes import CHANNEL, Transition
from graph.live import change_feed as feed_module
from graph.live.change_feed import ChangeFeed
from graph.live.change_stream import follow_changes
from graph.live.stream_events import Bookmark, ResyncRequired, StatusChanged, StatusEvent
from tests.support.fleet import fetch_rows, limit_examples
from tests.support.statements import record_statements
from tests.support.waiting import wait_until

OTHER_NODE, NODE = "node-1-hetzner-gex44", "node-2-macbook-m4max"  # seeded by revisions 1 and 2
ONLY_NODE = NodeFilter(node_ids=(NODE,))
SEARCH_FOR_NODE = NodeFilter(
    search="MacBook"
)  # the same node by a search, which only the database evaluates
SECONDS = 10

Events = AsyncGenerator[Sequence[StatusEvent], None]


async def append_changes(database: Database, *node_ids: str) -> None:
    """Append a change of each node, in one commit."""
    async with database.write() as session:
        ids = {node_id: await nodes.find_node(session, node_id) for node_id in set(node_ids)}
        transitions = [
            Transition(node.id, NodeStatus.OFFLINE, NodeStatus.OFFLINE, StatusReason.SEEDED)
            for node in map(ids.get, node_ids)
            if node is not None
        ]
        await status_changes.apply_transitions(session, transitions)


async def trim_log(database: Database, keep: int) -> None:
    async with database.write() as session:
        await status_changes.trim_log(session, keep_rows=keep, keep_seconds=1e9, batch=1000)


async def restore_log(database: Database, revision: int) -> None:
    """Set the log back to a revision, as restoring a backup does."""
    async with database.write() as session:
        parameters = {"revision": revision}
        await session.execute(
            text("DELETE FROM status_changes WHERE revision > :revision"), parameters
        )
        await session.execute(text("UPDATE registry_state SET revision = :revision"), parameters)


async def let_feed_read(feed: ChangeFeed, database: Database, notified: int | None = None) -> None:
    """Let the feed read as after a notification, by default of the newest revision."""

    async def read_newest() -> int:
        async with database.read() as session:
            return await status_changes.read_revision(session)

    await feed.read_up_to(await read_newest() if notified is None else notified, read_newest)


async def create_feed(database: Database, max_lag: int = 100) -> ChangeFeed:
    """Return a feed at the end of the log that reads only in `let_feed_read` or `run_feed`."""
    feed = ChangeFeed(database, check_seconds=300, max_lag=max_lag)
    await feed.start()
    feed.is_connected = True  # else it sends no bookmarks
    return feed


@asynccontextmanager
async def run_feed(feed: ChangeFeed) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.run())
    try:
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def follow_feed(
    feed: ChangeFeed,
    database: Database,
    after: int | None = None,
    node_filter: NodeFilter = EVERY_NODE,
    bookmark_seconds: float = 60,
) -> Events:
    return await follow_changes(
        feed, database, node_filter, after=after, bookmark_seconds=bookmark_seconds
    )


async def next_events(events: Events) -> Sequence[StatusEvent]:
    async with asyncio.timeout(SECONDS):
        return await anext(events)


def get_revision(event: StatusEvent) -> int:
    assert isinstance(event, StatusChanged)
    return event.change.revision


async def next_revisions(events: Events, count: int) -> list[int]:
    """Return the revisions of the next changes, without bookmarks."""
    revisions: list[int] = []
    while len(revisions) < count:
        for event in await next_events(events):
            assert not isinstance(event, ResyncRequired)
            if isinstance(event, StatusChanged):
                revisions.append(event.change.revision)
    return revisions


async def wait_for_revision(feed: ChangeFeed, revision: int) -> None:
    await wait_until(lambda: feed.revision == revision)


async def cut_listeners(database: Database) -> None:
    """Cut the connections that listen, as soon as there is one."""
    terminate = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'node-registry-listen' AND datname = current_database()
    """
    await wait_until(lambda: fetch_rows(database, terminate))


@dataclass
class Reader:
    """A subscriber that pulls one batch at a time and checks it against the log."""

    events: Events
    only_in: bool
    position: int
    """It has received every matching change up to this revision."""
    has_ended: bool = False

    def list_matching(self, log: list[str], after: int, upto: int) -> list[int]:
        return [
            revision
            for revision in range(after + 1, upto + 1)
            if not self.only_in or log[revision - 1] == NODE
        ]

    async def pull(self, log: list[str], oldest: int, lagging_below: int) -> None:
        """Receive the next events and check them.

        A reader at a position below `lagging_below` may get a resync even if the log has its next
        change. Bookmarks come after 0 seconds, so that each pull returns at once.
        """
        for event in await next_events(self.events):
            match event:
                case StatusChanged(change=change):
                    assert self.list_matching(log, self.position, change.revision) == [
                        change.revision
                    ]
                    assert change.node_id == log[change.revision - 1]
                    self.position = change.revision
                case Bookmark(revision=revision):
                    assert self.position <= revision <= len(log)
                    assert self.list_matching(log, self.position, revision) == []
                    self.position = revision
                case ResyncRequired(revision=revision):
                    assert self.position + 1 < oldest or self.position < lagging_below
                    assert self.position <= revision <= len(log)
                    with pytest.raises(StopAsyncIteration):
                        await anext(self.events)
                    self.has_ended = True


@dataclass
class Interleaving:
    """A log, the feed that follows it, and readers that resume at any revision.

    STEP draws `append`, `read`, `trim`, `resume`, `pull` and `pull_all` by name.
    """

    database: Database
    feed: ChangeFeed
    max_lag: int
    log: list[str] = field(default_factory=list)
    oldest: int = 1
    readers: list[Reader] = field(default_factory=list)

    async def append(self, node_ids: list[str]) -> None:
        await append_changes(self.database, *node_ids)
        self.log += node_ids

    async def read(self, offset: int) -> None:
        """Notify the feed of the revision at this offset from the newest."""
        newest = len(self.log)
        await let_feed_read(self.feed, self.database, max(0, newest + offset))
        assert self.feed.revision <= newest
        assert offset < 0 or self.feed.revision == newest

    async def trim(self, keep: int) -> None:
        await trim_log(self.database, keep)
        self.oldest = max(self.oldest, len(self.log) - keep + 1)

    async def resume(self, reader: tuple[int | None, bool]) -> None:
        newest, (start, only_in) = len(self.log), reader
        after = None if start is None else start % (newest + 1)
        node_filter = ONLY_NODE if only_in else EVERY_NODE
        events = await follow_feed(self.feed, self.database, after, node_filter, 0)
        self.readers.append(Reader(events, only_in, newest if after is None else after))

    async def pull(self, number: int) -> None:
        if self.readers:
            await self.pull_one(self.readers[number % len(self.readers)])

    async def pull_all(self, _: None) -> None:
        await asyncio.gather(*map(self.pull_one, self.readers))

    async def pull_one(self, reader: Reader) -> None:
        if not reader.has_ended:
            await reader.pull(self.log, self.oldest, self.feed.revision - self.max_lag)

    async def end(self) -> None:
        """Check that every reader reaches the end of the log or gets a resync."""
        await self.read(0)
        for reader in self.readers:
            while not reader.has_ended and reader.position < len(self.log):
                await self.pull_one(reader)
            await reader.events.aclose()
        assert self.feed.subscriber_count == 0


STEP = st.one_of(
    st.tuples(
        st.just("append"), st.lists(st.sampled_from([OTHER_NODE, NODE]), min_size=1, max_size=7)
    ),
    st.tuples(st.just("read"), st.sampled_from([-3, -1, 0, 0, 0, 0, 2, 99])),
    st.tuples(st.just("trim"), st.integers(0, 12)),
    st.tuples(st.just("resume"), st.tuples(st.integers(0, 40) | st.none(), st.booleans())),
    st.tuples(st.just("pull"), st.integers(0, 40)),
    st.tuples(st.just("pull_all"), st.none()),
)


@given(st.lists(STEP, min_size=5, max_size=40), st.integers(1, 4), st.integers(1, 12))
@limit_examples(150)
async def test_each_reader_gets_every_change_once_and_in_order_or_a_resync(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[str, Any]],
    batch_size: int,
    max_lag: int,
) -> None:
    """Holds for any order of appends, reads by the feed, trims and resumptions."""
    monkeypatch.setattr(feed_module, "BATCH_SIZE", batch_size)
    await restore_log(database, 0)
    interleaving = Interleaving(database, await create_feed(database, max_lag), max_lag)
    for action, argument in steps:
        await getattr(interleaving, action)(argument)
    await interleaving.end()


async def read_in_pieces(
    feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    last: int,
    rng: random.Random,
) -> list[int]:
    """Return the revisions up to `last` that a chain of readers receives, one after another."""
    revisions: list[int] = []
    after = 2
    while after < last:
        async with aclosing(await follow_feed(feed, database, after, node_filter, 0.01)) as events:
            for _ in range(rng.randint(1, 20)):
                for event in await next_events(events):
                    assert not isinstance(event, ResyncRequired)
                    after = event.revision if isinstance(event, Bookmark) else get_revision(event)
                    revisions += [after] if isinstance(event, StatusChanged) else []
                if after >= last:
                    break
    return revisions


async def test_short_lived_readers_miss_no_change_while_the_log_grows_and_is_trimmed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BATCH_SIZE", 7)
    rng, feed, last = random.Random(4), await create_feed(database, 50), 502  # noqa: S311  # no secret
    logged = [OTHER_NODE, NODE]

    async def write() -> None:
        while len(logged) < last:
            count = min(rng.randint(1, 9), last - len(logged))
            node_ids = rng.choices([OTHER_NODE, NODE], k=count)
            await append_changes(database, *node_ids)
            logged.extend(node_ids)
            if rng.random() < 0.2:
                await trim_log(database, 400)

    async with run_feed(feed), asyncio.timeout(60):
        tasks = [
            asyncio.create_task(read_in_pieces(feed, database, node_filter, last, rng))
            for node_filter in [EVERY_NODE, ONLY_NODE] * 3
        ]
        await write()
        revisions = [await task for task in tasks]
    assert revisions[::2] == [list(range(3, last + 1))] * 3
    node_revisions = [revision for revision in range(3, last + 1) if logged[revision - 1] == NODE]
    assert revisions[1::2] == [node_revisions] * 3


async def test_readers_that_resume_together_share_the_reads_of_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BATCH_SIZE", 5)
    await append_changes(database, *[NODE] * 9)
    feed = await create_feed(database)
    with record_statements(database) as sent:
        reading = [
            next_revisions(await follow_feed(feed, database, after), 11 - after)
            for after in [0, 0, 0, 1, 3, 4, 5, 7]
        ]
        for after, revisions in zip(
            [0, 0, 0, 1, 3, 4, 5, 7], await asyncio.gather(*reading), strict=True
        ):
            assert revisions == list(range(after + 1, 12))
    batch_reads = [statement for statement in sent if "LIMIT" in statement]
    assert len(batch_reads) == 3


async def test_live_readers_share_one_read_and_send_no_statements_themselves(
    database: Database,
) -> None:
    feed = await create_feed(database)
    readers = [await follow_feed(feed, database, 2) for _ in range(5)]
    reading = [asyncio.create_task(next_revisions(reader, 3)) for reader in readers]
    await append_changes(database, NODE, OTHER_NODE, NODE)
    with record_statements(database) as sent:
        await let_feed_read(feed, database, 5)
        assert await asyncio.gather(*reading) == [[3, 4, 5]] * 5
    assert len(sent) == 1


async def test_a_filter_on_values_of_the_rows_sends_no_statement(database: Database) -> None:
    feed = await create_feed(database)
    await append_changes(database, NODE, OTHER_NODE, NODE)
    await let_feed_read(feed, database)
    batch = await feed.wait_for_batch(2, 0, 0)
    assert batch is not None
    with record_statements(database) as sent:
        events = await batch.list_events_after(2, ONLY_NODE)
    assert [event.change.revision for event in events] == [3, 5]
    assert sent == []


async def test_equal_filters_share_one_evaluation_for_a_short_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append_changes(database, NODE, OTHER_NODE, NODE)
    feed = await create_feed(database)
    await append_changes(database, NODE, OTHER_NODE, NODE)
    await let_feed_read(feed, database)
    batch = await feed.wait_for_batch(5, 0, 0)
    assert batch is not None
    monkeypatch.setattr(feed_module, "SHARED_SECONDS", 0.05)
    with record_statements(database) as sent:
        for events in await asyncio.gather(
            *[batch.list_events_after(5, SEARCH_FOR_NODE) for _ in range(5)]
        ):
            assert [event.change.revision for event in events] == [6, 8]
        assert len(sent) == 1
        async with asyncio.timeout(SECONDS):
            while len(sent) == 1:
                await batch.list_events_after(5, SEARCH_FOR_NODE)
                await asyncio.sleep(0.005)


async def test_a_filter_whose_evaluation_failed_is_evaluated_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_unavailable(*_: object) -> dict[int, bool]:
        raise Unavailable(1)

    feed = await create_feed(database)
    await append_changes(database, NODE, OTHER_NODE)
    await let_feed_read(feed, database)
    with monkeypatch.context() as outage:
        outage.setattr(status_changes, "match_changes", raise_unavailable)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await next_events(await follow_feed(feed, database, 2, ONLY_NODE))
    assert feed.subscriber_count == 0
    assert await next_revisions(await follow_feed(feed, database, 2, ONLY_NODE), 1) == [3]


async def test_a_batch_of_the_log_whose_read_failed_is_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_unavailable(*_: object, **__: object) -> dict[Any, Any]:
        raise Unavailable(1)

    feed = await create_feed(database)
    with monkeypatch.context() as outage:
        outage.setattr(status_changes, "list_changes_after", raise_unavailable)
        with pytest.raises(Unavailable):
            await next_events(await follow_feed(feed, database, 0))
    assert await next_revisions(await follow_feed(feed, database, 0), 2) == [1, 2]


async def test_idle_readers_share_a_bookmark_of_the_position_read(database: Database) -> None:
    feed = await create_feed(database)
    first, second = [await follow_feed(feed, database, bookmark_seconds=0.01) for _ in range(2)]
    [bookmark], [same_bookmark] = await next_events(first), await next_events(second)
    assert bookmark == Bookmark(2)
    assert bookmark is same_bookmark  # so that it is executed once


async def test_a_bookmark_advances_past_hidden_changes_only(
    database: Database,
) -> None:
    feed = await create_feed(database)
    events = await follow_feed(feed, database, 2, ONLY_NODE, bookmark_seconds=0)
    await append_changes(database, OTHER_NODE, OTHER_NODE)
    await let_feed_read(feed, database)
    assert await next_events(events) == [feed.make_bookmark(4)]
    await append_changes(database, OTHER_NODE, NODE, OTHER_NODE)
    await let_feed_read(feed, database)
    assert await next_revisions(events, 1) == [6]
    assert await next_events(events) == [feed.make_bookmark(7)]


async def test_no_bookmark_is_sent_while_the_feed_is_disconnected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await create_feed(database)

    @asynccontextmanager
    async def raise_unavailable(*_: object) -> AsyncIterator[None]:
        raise Unavailable(1)
        yield

    events = await follow_feed(feed, database, bookmark_seconds=0.005)
    async with run_feed(feed):
        assert await next_events(events) == [feed.make_bookmark(2)]
        with monkeypatch.context() as outage:
            outage.setattr(feed_module, "open_listener", raise_unavailable)
            await cut_listeners(database)
            await wait_until(lambda: not feed.is_connected)
            waiting = asyncio.create_task(next_events(events))
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done()
            await append_changes(database, OTHER_NODE)
        [event] = await waiting
    assert isinstance(event, StatusChanged)


async def test_a_quick_reader_gets_all_of_a_commit_larger_than_the_kept_changes(
    database: Database,
) -> None:
    feed = await create_feed(database, max_lag=3)
    reading = asyncio.create_task(next_revisions(await follow_feed(feed, database, 2), 10))
    await append_changes(database, *[NODE] * 10)
    await let_feed_read(feed, database)
    assert await reading == list(range(3, 13))


async def test_a_reader_that_starts_ahead_of_the_feed_gets_the_next_changes(
    database: Database,
) -> None:
    feed = await create_feed(database)
    await append_changes(database, NODE, NODE)
    from_now, from_before = await follow_feed(feed, database), await follow_feed(feed, database, 3)
    reading = [
        asyncio.create_task(next_revisions(from_now, 1)),
        asyncio.create_task(next_revisions(from_before, 2)),
    ]
    await append_changes(database, NODE)
    await let_feed_read(feed, database)
    assert await asyncio.gather(*reading) == [[5], [4, 5]]


async def test_log_trimmed_beyond_the_feed_requires_a_resync_and_the_feed_continues(
    database: Database,
) -> None:
    feed = await create_feed(database)
    waiting = await follow_feed(feed, database, 2)
    next_event = asyncio.create_task(next_events(waiting))
    await append_changes(database, NODE, NODE)
    await trim_log(database, 0)
    with record_statements(database) as sent:
        await let_feed_read(feed, database)
    assert len(sent) < 10
    [event] = await next_event
    assert isinstance(event, ResyncRequired)
    assert event.revision == 4
    events = await follow_feed(feed, database, 4)
    await append_changes(database, NODE)
    await let_feed_read(feed, database)
    assert await next_revisions(events, 1) == [5]


async def test_false_notifications_have_no_effect(database: Database) -> None:
    feed = await create_feed(database)
    events = await follow_feed(feed, database, 2)
    async with run_feed(feed):
        await wait_until(lambda: feed.is_connected)
        await wait_until(lambda: fetch_rows(database, _LISTENERS))
        with record_statements(database) as sent:
            for payload in ("999999", "0"):
                async with database.write() as session:
                    await session.execute(text(f"NOTIFY {CHANNEL}, '{payload}'"))
                await append_changes(database, NODE)
                assert len(await next_revisions(events, 1)) == 1
        assert feed.revision == 4
        assert feed.log_resets == 0
        assert len(sent) < 25


_LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE application_name = 'node-registry-listen' AND datname = current_database()
"""


async def test_log_reset_requires_a_resync_of_each_reader_and_the_feed_continues(
    database: Database,
) -> None:
    await append_changes(database, NODE, NODE)
    feed = await create_feed(database)
    async with run_feed(feed):
        behind, live, idle = [await follow_feed(feed, database, 4) for _ in range(3)]
        first_events = asyncio.create_task(next_events(idle))
        await append_changes(database, NODE, NODE)
        assert await next_revisions(live, 2) == [5, 6]
        assert [len(await first_events)] == [2]
        waiting = asyncio.create_task(next_events(idle))
        await restore_log(database, 3)
        await append_changes(database, OTHER_NODE)
        for reader in (waiting, next_events(live), next_events(behind)):
            [event] = await reader
            assert isinstance(event, ResyncRequired)
            assert event.revision in {3, 4}
        assert (await next_revisions(await follow_feed(feed, database, 3), 1)) == [4]
        assert feed.log_resets == 1


async def test_a_log_that_reused_lost_revisions_is_recognized_as_reset(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promoted standby may lack the last commits and assign their revisions again."""
    feed = await create_feed(database)
    async with run_feed(feed):
        await append_changes(database, NODE, NODE)
        events = await follow_feed(feed, database, 2)
        assert await next_revisions(events, 2) == [3, 4]
        with monkeypatch.context() as outage:
            outage.setattr(database, "connect_to_listen", raise_no_connection)
            await cut_listeners(database)
            await restore_log(database, 3)
            await append_changes(database, OTHER_NODE, OTHER_NODE, OTHER_NODE)
        [event] = await next_events(events)
        assert isinstance(event, ResyncRequired)
        assert event.reason == "the change log was reset"
        assert event.revision == 6


def raise_no_connection() -> None:
    raise Unavailable(1)


async def test_a_cut_connection_alone_requires_no_resync(database: Database) -> None:
    feed = await create_feed(database)
    events = await follow_feed(feed, database, 2)
    async with run_feed(feed):
        for number in range(3):
            await append_changes(database, NODE)
            await cut_listeners(database)
            assert await next_revisions(events, 1) == [3 + number]
        await trim_log(database, 0)
        await cut_listeners(database)
        await append_changes(database, NODE)
        assert await next_revisions(events, 1) == [6]
    assert feed.log_resets == 0


@pytest.mark.parametrize("node_filter", [ONLY_NODE, SEARCH_FOR_NODE])
async def test_a_filter_matches_kept_changes_that_were_trimmed_from_the_log(
    database: Database, node_filter: NodeFilter
) -> None:
    """The feed of a quiet registry keeps changes that are older than the oldest in the log."""
    feed = await create_feed(database)
    first, second = [await follow_feed(feed, database, 2, node_filter) for _ in range(2)]
    await append_changes(database, NODE, OTHER_NODE, NODE)
    await let_feed_read(feed, database)
    await trim_log(database, 1)
    assert await next_revisions(first, 2) == [3, 5]
    assert await next_revisions(await follow_feed(feed, database, 4, node_filter), 1) == [5]
    assert await next_revisions(await follow_feed(feed, database, 2), 3) == [3, 4, 5]
    await second.aclose()


async def test_the_feed_reconnects_after_any_error_of_a_cut_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_MAX_BACKOFF_SECONDS", 0.01)
    listen, failures = asyncpg.Connection.add_listener, iter(FAILURES)

    async def fail_first(*arguments: Any) -> None:
        for failure in failures:
            raise failure
        await listen(*arguments)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", fail_first)
    feed = await create_feed(database)
    events = await follow_feed(feed, database, 2)
    await append_changes(database, NODE)
    async with run_feed(feed):
        assert await next_revisions(events, 1) == [3]


FAILURES = [
    asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ConnectionResetError(),
    TimeoutError(),
]


async def test_a_server_that_does_not_answer_a_listen_is_abandoned(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("db.registry.change_listener.LISTEN_TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(asyncpg.Connection, "add_listener", hang)
    async with asyncio.timeout(SECONDS):
        with pytest.raises(Unavailable):
            async with open_listener(database):
                pass
