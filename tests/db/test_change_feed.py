"""The feed of a process: each reader gets every change once and in order, or has to resync."""

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

OUT, IN = "node-1-hetzner-gex44", "node-2-macbook-m4max"  # as seeded, by revisions 1 and 2
ONLY_IN = NodeFilter(node_ids=(IN,))
FOUND_IN = NodeFilter(search="MacBook")  # ONLY_IN in words that only the database can compare
SECONDS = 10

Events = AsyncGenerator[Sequence[StatusEvent], None]


async def append(database: Database, *node_ids: str) -> None:
    """A change of each, in one commit."""
    async with database.write() as session:
        ids = {node_id: await nodes.find_node(session, node_id) for node_id in set(node_ids)}
        transitions = [
            Transition(node.id, NodeStatus.OFFLINE, NodeStatus.OFFLINE, StatusReason.SEEDED)
            for node in map(ids.get, node_ids)
            if node is not None
        ]
        await status_changes.apply_transitions(session, transitions)


async def trim(database: Database, keep: int) -> None:
    async with database.write() as session:
        await status_changes.trim_log(session, keep_rows=keep, keep_seconds=1e9, batch=1000)


async def restore(database: Database, revision: int) -> None:
    """The log as a backup had it."""
    async with database.write() as session:
        behind = {"revision": revision}
        await session.execute(text("DELETE FROM status_changes WHERE revision > :revision"), behind)
        await session.execute(text("UPDATE registry_state SET revision = :revision"), behind)


async def newest(database: Database) -> int:
    async with database.read() as session:
        return await status_changes.read_revision(session)


async def read_on(feed: ChangeFeed, database: Database, told: int | None = None) -> None:
    async def ask() -> int:
        return await newest(database)

    await feed.read_up_to(await ask() if told is None else told, ask)


async def a_feed(database: Database, max_lag: int = 100) -> ChangeFeed:
    """At the end of the log; it reads on when the test says so, or when it is run."""
    feed = ChangeFeed(database, check_seconds=300, max_lag=max_lag)
    await feed.start()
    feed.is_connected = True  # as if it were run
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


def revision_of(told: StatusEvent) -> int:
    assert isinstance(told, StatusChanged)
    return told.change.revision


async def next_revisions(events: Events, count: int) -> list[int]:
    """Of the next changes; bookmarks are passed over."""
    revisions: list[int] = []
    while len(revisions) < count:
        for told in await next_events(events):
            assert not isinstance(told, ResyncRequired)
            if isinstance(told, StatusChanged):
                revisions.append(told.change.revision)
    return revisions


async def wait_for_revision(feed: ChangeFeed, revision: int) -> None:
    await wait_until(lambda: feed.revision == revision)


async def cut_listeners(database: Database) -> None:
    cut = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'node-registry-listen' AND datname = current_database()
    """
    await wait_until(lambda: fetch_rows(database, cut))


@dataclass
class Reader:
    """Pulls one batch at a time, and knows what it should have been told."""

    events: Events
    only_in: bool
    known: int
    """Up to here it has been told all."""
    told: list[int] = field(default_factory=list)
    ended: bool = False

    def meant(self, log: list[str], after: int, upto: int) -> list[int]:
        return [
            revision
            for revision in range(after + 1, upto + 1)
            if not self.only_in or log[revision - 1] == IN
        ]

    async def pull(self, log: list[str], oldest: int, lagging_below: int) -> None:
        """`lagging_below`: whoever has come no further may be told to resync, whatever is logged.

        With bookmarks after no time at all each pull tells something at once.
        """
        for event_ in await next_events(self.events):
            match event_:
                case StatusChanged(change=change):
                    assert self.meant(log, self.known, change.revision) == [change.revision]
                    assert change.node_id == log[change.revision - 1]
                    self.told.append(change.revision)
                    self.known = change.revision
                case Bookmark(revision=revision):
                    assert self.known <= revision <= len(log)
                    assert self.meant(log, self.known, revision) == []
                    self.known = revision
                case ResyncRequired(revision=revision):
                    assert self.known + 1 < oldest or self.known < lagging_below
                    assert self.known <= revision <= len(log)
                    with pytest.raises(StopAsyncIteration):
                        await anext(self.events)
                    self.ended = True


@dataclass
class Interleaving:
    """A log, the feed that follows it, and readers that resume where they like."""

    database: Database
    feed: ChangeFeed
    max_lag: int
    log: list[str] = field(default_factory=list)
    oldest: int = 1
    readers: list[Reader] = field(default_factory=list)

    async def append(self, node_ids: list[str]) -> None:
        await append(self.database, *node_ids)
        self.log += node_ids

    async def read(self, offset: int) -> None:
        """As news of a revision that far from the newest lets the feed do."""
        newest = len(self.log)
        await read_on(self.feed, self.database, max(0, newest + offset))
        assert self.feed.revision <= newest
        assert offset < 0 or self.feed.revision == newest

    async def trim(self, keep: int) -> None:
        await trim(self.database, keep)
        self.oldest = max(self.oldest, len(self.log) - keep + 1)

    async def resume(self, reader: tuple[int | None, bool]) -> None:
        newest, (asked, only_in) = len(self.log), reader
        after = None if asked is None else asked % (newest + 1)
        node_filter = ONLY_IN if only_in else EVERY_NODE
        events = await follow_feed(self.feed, self.database, after, node_filter, 0)
        self.readers.append(Reader(events, only_in, newest if after is None else after))

    async def pull(self, number: int) -> None:
        if self.readers:
            await self.pull_one(self.readers[number % len(self.readers)])

    async def pull_all(self, _: None) -> None:
        await asyncio.gather(*map(self.pull_one, self.readers))

    async def pull_one(self, reader: Reader) -> None:
        if not reader.ended:
            await reader.pull(self.log, self.oldest, self.feed.revision - self.max_lag)

    async def end(self) -> None:
        """Everybody comes to the end of the log, or has to resync."""
        await self.read(0)
        for reader in self.readers:
            while not reader.ended and reader.known < len(self.log):
                await self.pull_one(reader)
            await reader.events.aclose()
        assert self.feed.subscriber_count == 0


STEP = st.one_of(
    st.tuples(st.just("append"), st.lists(st.sampled_from([OUT, IN]), min_size=1, max_size=7)),
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
    """Whatever is appended, read by the feed, trimmed and resumed, in whatever order."""
    monkeypatch.setattr(feed_module, "BATCH_SIZE", batch_size)
    await restore(database, 0)
    happening = Interleaving(database, await a_feed(database, max_lag), max_lag)
    for action, argument in steps:
        await getattr(happening, action)(argument)
    await happening.end()


async def read_in_pieces(
    feed: ChangeFeed,
    database: Database,
    node_filter: NodeFilter,
    last: int,
    chance: random.Random,
) -> list[int]:
    """Everything up to the last revision, by readers that resume one behind the other."""
    told: list[int] = []
    after = 2
    while after < last:
        async with aclosing(await follow_feed(feed, database, after, node_filter, 0.01)) as events:
            for _ in range(chance.randint(1, 20)):
                for each in await next_events(events):
                    assert not isinstance(each, ResyncRequired)
                    after = each.revision if isinstance(each, Bookmark) else revision_of(each)
                    told += [after] if isinstance(each, StatusChanged) else []
                if after >= last:
                    break
    return told


async def test_readers_that_come_and_go_while_changes_are_made_and_trimmed_miss_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BATCH_SIZE", 7)
    chance, feed, last = random.Random(4), await a_feed(database, 50), 502  # noqa: S311  # no secret
    logged = [OUT, IN]

    async def write() -> None:
        while len(logged) < last:
            count = min(chance.randint(1, 9), last - len(logged))
            node_ids = chance.choices([OUT, IN], k=count)
            await append(database, *node_ids)
            logged.extend(node_ids)
            if chance.random() < 0.2:
                await trim(database, 400)

    async with run_feed(feed), asyncio.timeout(60):
        reading = [
            asyncio.create_task(read_in_pieces(feed, database, node_filter, last, chance))
            for node_filter in [EVERY_NODE, ONLY_IN] * 3
        ]
        await write()
        told = [await each for each in reading]
    assert told[::2] == [list(range(3, last + 1))] * 3
    of_in = [revision for revision in range(3, last + 1) if logged[revision - 1] == IN]
    assert told[1::2] == [of_in] * 3


async def test_readers_that_resume_together_share_the_reading_of_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "BATCH_SIZE", 5)
    await append(database, *[IN] * 9)
    feed = await a_feed(database)
    with record_statements(database) as sent:
        reading = [
            next_revisions(await follow_feed(feed, database, after), 11 - after)
            for after in [0, 0, 0, 1, 3, 4, 5, 7]
        ]
        for after, told in zip(
            [0, 0, 0, 1, 3, 4, 5, 7], await asyncio.gather(*reading), strict=True
        ):
            assert told == list(range(after + 1, 12))
    parts = [statement for statement in sent if "LIMIT" in statement]
    assert len(parts) == 3


async def test_readers_share_what_was_read_live_and_ask_nothing_themselves(
    database: Database,
) -> None:
    feed = await a_feed(database)
    readers = [await follow_feed(feed, database, 2) for _ in range(5)]
    reading = [asyncio.create_task(next_revisions(each, 3)) for each in readers]
    await append(database, IN, OUT, IN)
    with record_statements(database) as sent:
        await read_on(feed, database, 5)
        assert await asyncio.gather(*reading) == [[3, 4, 5]] * 5
    assert len(sent) == 1


async def test_a_filter_on_what_the_rows_hold_asks_the_database_nothing(database: Database) -> None:
    feed = await a_feed(database)
    await append(database, IN, OUT, IN)
    await read_on(feed, database)
    batch = await feed.wait_for_batch(2, 0, 0)
    assert batch is not None
    with record_statements(database) as sent:
        meant = await batch.list_events_after(2, ONLY_IN)
    assert [each.change.revision for each in meant] == [3, 5]
    assert sent == []


async def test_a_filter_is_asked_once_for_all_and_its_answer_not_kept_for_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(database, IN, OUT, IN)
    feed = await a_feed(database)
    await append(database, IN, OUT, IN)
    await read_on(feed, database)
    batch = await feed.wait_for_batch(5, 0, 0)
    assert batch is not None
    monkeypatch.setattr(feed_module, "SHARED_SECONDS", 0.05)
    with record_statements(database) as sent:
        for meant in await asyncio.gather(
            *[batch.list_events_after(5, FOUND_IN) for _ in range(5)]
        ):
            assert [each.change.revision for each in meant] == [6, 8]
        assert len(sent) == 1
        async with asyncio.timeout(SECONDS):
            while len(sent) == 1:
                await batch.list_events_after(5, FOUND_IN)
                await asyncio.sleep(0.005)


async def test_a_filter_that_could_not_be_asked_is_asked_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> dict[int, bool]:
        raise Unavailable(1)

    feed = await a_feed(database)
    await append(database, IN, OUT)
    await read_on(feed, database)
    with monkeypatch.context() as outage:
        outage.setattr(status_changes, "match_changes", away)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await next_events(await follow_feed(feed, database, 2, ONLY_IN))
    assert feed.subscriber_count == 0
    assert await next_revisions(await follow_feed(feed, database, 2, ONLY_IN), 1) == [3]


async def test_a_part_of_the_log_that_could_not_be_read_is_read_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> dict[Any, Any]:
        raise Unavailable(1)

    feed = await a_feed(database)
    with monkeypatch.context() as outage:
        outage.setattr(status_changes, "list_changes_after", away)
        with pytest.raises(Unavailable):
            await next_events(await follow_feed(feed, database, 0))
    assert await next_revisions(await follow_feed(feed, database, 0), 2) == [1, 2]


async def test_idle_readers_are_told_how_far_the_log_was_read(database: Database) -> None:
    feed = await a_feed(database)
    first, second = [await follow_feed(feed, database, bookmark_seconds=0.01) for _ in range(2)]
    [told], [told_too] = await next_events(first), await next_events(second)
    assert told == Bookmark(2)
    assert told is told_too  # so that it is executed once


async def test_a_bookmark_passes_over_what_the_filter_hides_and_nothing_else(
    database: Database,
) -> None:
    feed = await a_feed(database)
    events = await follow_feed(feed, database, 2, ONLY_IN, bookmark_seconds=0)
    await append(database, OUT, OUT)
    await read_on(feed, database)
    assert await next_events(events) == [feed.make_bookmark(4)]
    await append(database, OUT, IN, OUT)
    await read_on(feed, database)
    assert await next_revisions(events, 1) == [6]
    assert await next_events(events) == [feed.make_bookmark(7)]


async def test_no_bookmark_tells_that_all_is_well_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await a_feed(database)

    @asynccontextmanager
    async def away(*_: object) -> AsyncIterator[None]:
        raise Unavailable(1)
        yield

    events = await follow_feed(feed, database, bookmark_seconds=0.005)
    async with run_feed(feed):
        assert await next_events(events) == [feed.make_bookmark(2)]
        with monkeypatch.context() as outage:
            outage.setattr(feed_module, "open_listener", away)
            await cut_listeners(database)
            await wait_until(lambda: not feed.is_connected)
            waiting = asyncio.create_task(next_events(events))
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done()
            await append(database, OUT)
        [told] = await waiting
    assert isinstance(told, StatusChanged)


async def test_a_reader_that_is_quick_gets_all_of_a_commit_larger_than_what_is_kept(
    database: Database,
) -> None:
    feed = await a_feed(database, max_lag=3)
    reading = asyncio.create_task(next_revisions(await follow_feed(feed, database, 2), 10))
    await append(database, *[IN] * 10)
    await read_on(feed, database)
    assert await reading == list(range(3, 13))


async def test_a_reader_that_starts_ahead_of_the_feed_is_told_what_follows(
    database: Database,
) -> None:
    feed = await a_feed(database)
    await append(database, IN, IN)
    now, before = await follow_feed(feed, database), await follow_feed(feed, database, 3)
    reading = [asyncio.create_task(next_revisions(*each)) for each in [(now, 1), (before, 2)]]
    await append(database, IN)
    await read_on(feed, database)
    assert await asyncio.gather(*reading) == [[5], [4, 5]]


async def test_a_log_trimmed_of_all_that_was_not_read_asks_for_a_resync_and_goes_on(
    database: Database,
) -> None:
    feed = await a_feed(database)
    waiting = await follow_feed(feed, database, 2)
    asked = asyncio.create_task(next_events(waiting))
    await append(database, IN, IN)
    await trim(database, 0)
    with record_statements(database) as sent:
        await read_on(feed, database)
    assert len(sent) < 10
    [told] = await asked
    assert isinstance(told, ResyncRequired)
    assert told.revision == 4
    events = await follow_feed(feed, database, 4)
    await append(database, IN)
    await read_on(feed, database)
    assert await next_revisions(events, 1) == [5]


async def test_false_news_do_no_harm(database: Database) -> None:
    feed = await a_feed(database)
    events = await follow_feed(feed, database, 2)
    async with run_feed(feed):
        await wait_until(lambda: feed.is_connected)
        await wait_until(lambda: fetch_rows(database, _LISTENERS))
        with record_statements(database) as sent:
            for payload in ("999999", "0"):
                async with database.write() as session:
                    await session.execute(text(f"NOTIFY {CHANNEL}, '{payload}'"))
                await append(database, IN)
                assert len(await next_revisions(events, 1)) == 1
        assert feed.revision == 4
        assert feed.log_resets == 0
        assert len(sent) < 25


_LISTENERS = """
SELECT pid FROM pg_stat_activity
WHERE application_name = 'node-registry-listen' AND datname = current_database()
"""


async def test_a_log_set_back_while_it_is_followed_asks_for_a_resync_and_goes_on(
    database: Database,
) -> None:
    await append(database, IN, IN)
    feed = await a_feed(database)
    async with run_feed(feed):
        behind, live, idle = [await follow_feed(feed, database, 4) for _ in range(3)]
        asked = asyncio.create_task(next_events(idle))
        await append(database, IN, IN)
        assert await next_revisions(live, 2) == [5, 6]
        assert [len(await asked)] == [2]
        waiting = asyncio.create_task(next_events(idle))
        await restore(database, 3)
        await append(database, OUT)
        for reader in (waiting, next_events(live), next_events(behind)):
            [told] = await reader
            assert isinstance(told, ResyncRequired)
            assert told.revision in {3, 4}
        assert (await next_revisions(await follow_feed(feed, database, 3), 1)) == [4]
        assert feed.log_resets == 1


async def test_a_log_that_has_passed_what_it_lost_is_known_by_what_it_says_there(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a standby took over that lacked the last commits, and changes went on at once."""
    feed = await a_feed(database)
    async with run_feed(feed):
        await append(database, IN, IN)
        events = await follow_feed(feed, database, 2)
        assert await next_revisions(events, 2) == [3, 4]
        with monkeypatch.context() as outage:
            outage.setattr(database, "connect_to_listen", _no_connection)
            await cut_listeners(database)
            await restore(database, 3)
            await append(database, OUT, OUT, OUT)
        [told] = await next_events(events)
        assert isinstance(told, ResyncRequired)
        assert told.reason == "the change log was reset"
        assert told.revision == 6


def _no_connection() -> None:
    raise Unavailable(1)


async def test_a_cut_of_the_connection_alone_asks_nobody_for_a_resync(database: Database) -> None:
    feed = await a_feed(database)
    events = await follow_feed(feed, database, 2)
    async with run_feed(feed):
        for number in range(3):
            await append(database, IN)
            await cut_listeners(database)
            assert await next_revisions(events, 1) == [3 + number]
        await trim(database, 0)
        await cut_listeners(database)
        await append(database, IN)
        assert await next_revisions(events, 1) == [6]
    assert feed.log_resets == 0


@pytest.mark.parametrize("node_filter", [ONLY_IN, FOUND_IN])
async def test_what_is_kept_is_filtered_though_the_log_holds_it_no_more(
    database: Database, node_filter: NodeFilter
) -> None:
    """A quiet registry keeps changes that are older than its log reaches back."""
    feed = await a_feed(database)
    first, second = [await follow_feed(feed, database, 2, node_filter) for _ in range(2)]
    await append(database, IN, OUT, IN)
    await read_on(feed, database)
    await trim(database, 1)
    assert await next_revisions(first, 2) == [3, 5]
    assert await next_revisions(await follow_feed(feed, database, 4, node_filter), 1) == [5]
    assert await next_revisions(await follow_feed(feed, database, 2), 3) == [3, 4, 5]
    await second.aclose()


async def test_whatever_a_cut_connection_fails_with_the_feed_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_MAX_BACKOFF_SECONDS", 0.01)
    listen, failures = asyncpg.Connection.add_listener, iter(FAILURES)

    async def fail_first(*arguments: Any) -> None:
        for failure in failures:
            raise failure
        await listen(*arguments)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", fail_first)
    feed = await a_feed(database)
    events = await follow_feed(feed, database, 2)
    await append(database, IN)
    async with run_feed(feed):
        assert await next_revisions(events, 1) == [3]


FAILURES = [
    asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ConnectionResetError(),
    TimeoutError(),
]


async def test_a_server_that_does_not_answer_when_it_is_told_to_listen_is_left(
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
