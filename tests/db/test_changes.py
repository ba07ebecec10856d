"""The change log with many writers: gapless, in commit order, announced by NOTIFY."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import NodeIdTaken, NodeNotFound, Unavailable
from db.registry import heartbeats, nodes, registration, status_changes, sweep
from db.registry.change_listener import open_listener
from db.registry.node_filter import NodeFilter
from db.registry.status_changes import CHANNEL, LoggedChange
from tests.support.fleet import (
    AGENT,
    EXPIRED,
    LATER,
    OPERATOR,
    PROCESS,
    RULES,
    age,
    beat,
    clear,
    expire_maintenance,
    fetch_rows,
    get_node,
    limit_examples,
    list_changes,
    make_registration,
    make_report,
    mark_registry_running,
    register,
    run_sweep,
    wait_for_lock,
)
from tests.support.tcp_proxy import run_proxy
from tests.support.waiting import wait_until

FLEET = ["node-1", "node-2", "node-3"]
ACTIONS = ["register", "beat", "degrade", "silence", "sweep", "maintain", "end", "deregister"]
STEP = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from(FLEET),
    st.sampled_from(["boot-1", "boot-2"]),
    st.sampled_from(["commit", "commit", "commit", "undo"]),
)
Step = tuple[str, str, str, str]


@asynccontextmanager
async def open_undone_transaction(database: Database) -> AsyncIterator[AsyncSession]:
    """Open a transaction that is rolled back at its end."""
    async with database.write() as session:
        yield session
        await session.rollback()


async def perform_action(
    session: AsyncSession, action: str, node_id: str, boot_id: str, sequence: int
) -> None:
    match action:
        case "register":
            await registration.register(
                session, make_registration(node_id, boot_id), rules=RULES, caller=AGENT
            )
        case "beat" | "degrade":
            batch = [
                make_report(other, sequence, boot_id, degraded=action == "degrade")
                for other in (node_id, *FLEET)
            ]
            await heartbeats.record_in_transaction(session, batch, RULES)
        case "silence":
            await session.execute(
                text(
                    "UPDATE nodes SET heard_at = heard_at - interval '20 s' WHERE node_id = :node"
                ),
                {"node": node_id},
            )
        case "sweep":
            await mark_registry_running(session)
            await sweep.sweep(session, PROCESS, RULES)
        case "maintain":
            await nodes.start_maintenance(
                session, node_id, note="why", until=LATER, caller=OPERATOR
            )
            await expire_maintenance(session, node_id)
        case "end":
            await nodes.end_maintenance(session, node_id, rules=RULES, note=None, caller=OPERATOR)
        case "deregister":
            await nodes.deregister(session, node_id, note=None, caller=OPERATOR)


async def write(database: Database, steps: Sequence[Step], sequence: "count[int]") -> None:
    for action, node_id, boot_id, end in steps:
        transaction = open_undone_transaction(database) if end == "undo" else database.write()
        with suppress(NodeIdTaken, NodeNotFound):
            async with transaction as session:
                await perform_action(session, action, node_id, boot_id, next(sequence))


async def follow(database: Database, revisions: list[int]) -> None:
    """Read new changes repeatedly, as a subscriber does."""
    while True:
        async with database.open_connection() as connection:
            logged, _ = await status_changes.list_changes_after(connection, len(revisions))
            revisions += [change.revision for change in logged]
        await asyncio.sleep(0)


@given(st.lists(st.lists(STEP, max_size=8), min_size=3, max_size=3))
@limit_examples(40)
async def test_any_interleaving_leaves_a_gapless_log_that_explains_each_node(
    database: Database, programs: list[list[Step]]
) -> None:
    async with database.write() as session:
        await clear(session)
    revisions: list[int] = []
    reader = asyncio.create_task(follow(database, revisions))
    sequence = count()
    await asyncio.gather(*(write(database, program, sequence) for program in programs))
    reader.cancel()
    with suppress(asyncio.CancelledError):
        await reader
    log = await list_changes(database)
    assert [change.revision for change in log] == list(range(1, len(log) + 1))
    assert revisions == [change.revision for change in log][: len(revisions)]
    assert await fetch_rows(database, "SELECT revision FROM registry_state") == [(len(log),)]
    assert all(previous.changed_at <= following.changed_at for previous, following in pairwise(log))
    await assert_log_explains_each_node(database, log)


async def assert_log_explains_each_node(database: Database, log: list[LoggedChange]) -> None:
    rows = await fetch_rows(
        database, "SELECT id, status, status_reason, status_since, removed_at FROM nodes"
    )
    for node, status, reason, since, removed_at in rows:
        chain = [change for change in log if change.node == node]
        assert chain[0].previous_status is None
        assert all(
            previous.status is following.previous_status for previous, following in pairwise(chain)
        )
        assert (chain[-1].status, chain[-1].reason) == (status, reason)
        assert (chain[-1].reason is StatusReason.DEREGISTERED) == (removed_at is not None)
        transitions = [c for c in chain if c.previous_status is not c.status]
        assert transitions[-1].changed_at == since


@asynccontextmanager
async def collect_notifications(database: Database) -> AsyncIterator[list[int]]:
    """Yield the list of the payloads of notifications, which grows as they arrive."""
    notifications: list[int] = []
    connection = await database.connect_to_listen()
    await connection.add_listener(
        CHANNEL, lambda *arguments: notifications.append(int(arguments[-1]))
    )
    try:
        yield notifications
        await connection.execute("SELECT 1")
    finally:
        connection.terminate()


async def wait_for_notifications(notifications: list[int], revisions: list[int]) -> None:
    await wait_until(lambda: len(notifications) >= len(revisions))
    assert notifications == revisions


async def test_notification_carries_the_revision_and_is_sent_after_the_commit(
    database: Database,
) -> None:
    async with collect_notifications(database) as notifications:
        async with database.write() as session:
            for node_id in FLEET:
                await registration.register(
                    session, make_registration(node_id), rules=RULES, caller=AGENT
                )
            async with collect_notifications(database) as probe:
                await asyncio.sleep(0.05)
            assert notifications == probe == []
        await wait_for_notifications(notifications, [3, 4, 5])
        [ack] = await asyncio.gather(beat(database, "node-1", degraded=True))
        assert ack.status is NodeStatus.DEGRADED
        await wait_for_notifications(notifications, [3, 4, 5, 6])


async def test_sweep_of_many_nodes_sends_one_notification(database: Database) -> None:
    for node_id in FLEET:
        await register(database, node_id)
    await age(database, EXPIRED)
    async with collect_notifications(database) as notifications:
        assert await run_sweep(database) == 3
        await wait_for_notifications(notifications, [8])


async def test_rolled_back_change_leaves_no_gap_and_sends_no_notification(
    database: Database,
) -> None:
    async with collect_notifications(database) as notifications:
        async with open_undone_transaction(database) as session:
            await registration.register(
                session, make_registration("node-3"), rules=RULES, caller=AGENT
            )
        node, _ = await register(database, "node-4")
        await wait_for_notifications(notifications, [3])
    assert [change.revision for change in await list_changes(database, node.id)] == [3]


async def test_heartbeat_without_a_status_change_takes_no_revision(database: Database) -> None:
    await register(database, "node-3")
    async with collect_notifications(database) as notifications:
        for sequence in range(3):
            await beat(database, "node-3", sequence)
        await run_sweep(database)
        assert notifications == []
    assert await fetch_rows(database, "SELECT revision FROM registry_state") == [(3,)]


async def test_change_waits_for_the_previous_transaction(database: Database) -> None:
    """This way no revision becomes visible before a lower one."""
    async with database.write() as session:
        await registration.register(session, make_registration("node-3"), rules=RULES, caller=AGENT)
        second = asyncio.create_task(register(database, "node-4"))
        await wait_for_lock(database)
        assert not second.done()
        assert len(await list_changes(database)) == 2
    node, _ = await second
    assert [change.revision for change in await list_changes(database, node.id)] == [4]


async def test_changes_are_read_in_order_within_bounds(database: Database) -> None:
    for node_id in FLEET:
        await register(database, node_id)

    async def list_revisions(after: int, **bounds: int) -> list[int]:
        async with database.open_connection() as connection:
            logged, _ = await status_changes.list_changes_after(connection, after, **bounds)
        return [change.revision for change in logged]

    assert await list_revisions(0, limit=2) == [1, 2]
    assert await list_revisions(1, upto=3) == [2, 3]
    assert await list_revisions(5) == []
    async with database.read() as session:
        assert await status_changes.read_revision(session) == 5
        assert (await status_changes.read_state(session)).revision == 5
    async with database.open_connection() as connection:
        [last], current_nodes = await status_changes.list_changes_after(connection, 4)
    node = await get_node(database, last.node_id)
    assert [row.id for row in current_nodes.values()] == [last.node] == [node.id]
    assert all(
        getattr(current_nodes[node.id], name) == value for name, value in node.model_dump().items()
    )


async def test_changes_are_read_with_their_nodes_once_and_removed_nodes_are_marked(
    database: Database,
) -> None:
    await register(database, "stays")
    await beat(database, "stays", degraded=True)
    await register(database, "gone")
    async with database.write() as session:
        await nodes.deregister(session, "gone", note=None, caller=OPERATOR)
    async with database.open_connection() as connection:
        logged, current_nodes = await status_changes.list_changes_after(connection, 2)
    assert [change.node_id for change in logged] == ["stays", "stays", "gone", "gone"]
    assert [node.node_id for node in current_nodes.values()] == ["stays", "gone"]
    assert [node.node_id for node in current_nodes.values() if node.removed_at is None] == ["stays"]
    assert current_nodes[logged[0].node].status is NodeStatus.DEGRADED


async def test_revision_range_follows_the_trimmed_log(database: Database) -> None:
    await register(database, "node-3")
    for trimmed, expected in ((0, range(1, 4)), (1, range(2, 4)), (3, range(4, 4))):
        async with database.write() as session:
            await session.execute(
                text("DELETE FROM status_changes WHERE revision <= :n"), {"n": trimmed}
            )
        async with database.read() as session:
            assert await status_changes.read_revision_range(session) == expected


async def test_filter_matches_removed_nodes_and_the_new_status_of_a_change(
    database: Database,
) -> None:
    await register(database, "node-3", labels=["gpu"])
    await beat(database, "node-3", degraded=True)
    async with database.write() as session:
        await nodes.deregister(session, "node-3", note=None, caller=OPERATOR)

    async def match_revisions(revisions: range, **conditions: object) -> set[int]:
        node_filter = NodeFilter(**conditions)  # type: ignore[arg-type]  # the conditions of the test
        async with database.open_connection() as connection:
            changes, changed_nodes = await status_changes.list_changes_after(
                connection, revisions.start - 1, upto=revisions.stop - 1
            )
        return await status_changes.match_changes(database, changes, changed_nodes, node_filter)

    assert await match_revisions(range(1, 6), node_ids=("node-3",)) == {3, 4, 5}
    assert await match_revisions(range(1, 5), node_ids=("node-3",)) == {3, 4}
    assert await match_revisions(range(1, 6), statuses=(NodeStatus.OFFLINE,)) == {1, 2, 5}
    assert await match_revisions(range(1, 6), statuses=(NodeStatus.DEGRADED,)) == {4}


async def test_listener_wakes_when_a_change_is_committed(database: Database) -> None:
    async with open_listener(database) as listener:
        assert await listener.read_revision() == 2
        waiting = asyncio.create_task(listener.wait_for_change(60))
        await register(database, "node-3")
        async with asyncio.timeout(5):
            assert await waiting == 3


async def test_listener_misses_no_change_while_it_is_not_waiting(database: Database) -> None:
    async with open_listener(database) as listener:
        await register(database, "node-3")
        async with asyncio.timeout(5):
            assert await listener.wait_for_change(60) == 3


async def test_listener_without_a_change_returns_after_its_timeout(database: Database) -> None:
    async with open_listener(database) as listener:
        assert await listener.wait_for_change(0.01) == 2


async def test_listener_detects_its_dead_connection(database: Database) -> None:
    async with open_listener(database) as listener:
        waiting = asyncio.create_task(listener.wait_for_change(60))
        await asyncio.sleep(0)
        await fetch_rows(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'node-registry-listen'",
        )
        async with asyncio.timeout(5):
            with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
                await waiting


async def test_listening_to_an_unreachable_server_is_unavailable(database: Database) -> None:
    unreachable = Database(database.url.set(host="127.0.0.1", port=1, query={}))
    with pytest.raises(Unavailable):
        async with open_listener(unreachable):
            pass
    await unreachable.close()


async def test_failures_of_a_separate_pool_are_counted(database: Database) -> None:
    async with database.open_separate_pool(1) as separate:
        with pytest.raises(Unavailable):
            async with separate.open_connection() as connection:
                await connection.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
        await separate.ping()
    assert database.failure_count == 1


async def _reject_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reject a connection as PostgreSQL does during recovery."""
    await reader.read(8)
    writer.write(b"N")  # no TLS here
    await reader.read(1000)
    response = b"SFATAL\0C57P03\0Mthe database system is not yet accepting connections\0\0"
    writer.write(b"E" + (len(response) + 4).to_bytes(4) + response)
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(
    "open_access", [Database.read, Database.write, Database.open_connection, open_listener]
)
async def test_recovering_server_is_unavailable_for_every_kind_of_access(
    database: Database, open_access: Callable[[Database], AbstractAsyncContextManager[Any]]
) -> None:
    async with await asyncio.start_server(_reject_connection, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        recovering = Database(database.url.set(host="127.0.0.1", port=port, query={}))
        with pytest.raises(Unavailable):
            async with open_access(recovering) as access:
                await access.execute(text("SELECT 1"))
        await recovering.close()


@pytest.mark.parametrize(
    ("open_access", "statement"),
    [
        (Database.read, text("SELECT 1")),
        (Database.write, text("SELECT 1")),
        (Database.open_connection, "SELECT 1"),
    ],
    ids=["read", "write", "driver"],
)
async def test_server_that_vanishes_within_a_statement_is_unavailable_after_the_timeout(
    database: Database,
    open_access: Callable[[Database], AbstractAsyncContextManager[Any]],
    statement: object,
) -> None:
    """PostgreSQL is behind a proxy that stops forwarding."""
    folder = Path(str(database.url.query["host"]))
    async with run_proxy(str(folder / f".s.PGSQL.{database.url.query['port']}")) as proxy:
        proxied = Database(
            database.url.set(host="127.0.0.1", port=proxy.port, query={}), pool_size=1
        )
        await proxied.ping()
        proxy.stall()
        proxied._statement_timeout_seconds = 0.2  # noqa: SLF001  # the client's timeout, which the server does not know
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                async with open_access(proxied) as access:
                    await access.execute(statement)
        proxied._statement_timeout_seconds = 10  # noqa: SLF001
        await proxied.ping()
        await proxied.close()


async def test_connection_that_ends_at_checkout_is_unavailable(
    database: Database,
) -> None:
    def disconnect(*_: object) -> None:
        raise DisconnectionError

    event.listen(database.engine.sync_engine, "checkout", disconnect)
    with pytest.raises(Unavailable):
        await database.ping()


@pytest.mark.parametrize(
    "failure",
    [
        asyncpg.InternalClientError(
            "cannot switch to state 11; another operation (2) is in progress"
        ),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        ConnectionResetError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_any_failure_of_a_cut_connection_is_unavailable(
    database: Database, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise failure

    async def read_while_listening(patches: pytest.MonkeyPatch) -> None:
        async with open_listener(database) as listener, listener.open_connection() as connection:
            patches.setattr(asyncpg.Connection, "prepare", fail)
            patches.setattr(asyncpg.Connection, "fetch", fail)
            await status_changes.list_changes_after(connection, 0)

    with monkeypatch.context() as patches:
        with pytest.raises(Unavailable):
            await read_while_listening(patches)
        with pytest.raises(Unavailable):
            await database.ping()
