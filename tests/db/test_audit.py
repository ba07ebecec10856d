"""The audit log: actors, addresses, states before and after, pages and retention."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.access.audit import (
    EVERY_ENTRY,
    MAX_REJECTIONS_PER_HOUR,
    MAX_REJECTIONS_PER_MINUTE,
    OTHER_SUBJECTS,
    AuditFilter,
)
from db.core.database import Database
from db.core.enums import ProfileType, Role
from db.core.errors import BadInput, NodeIdTaken, NodeNotFound
from db.core.identity import Caller, Identity
from db.core.tables import AuditEntry
from db.registry import nodes
from db.registry.profiles import ProfileContent
from tests.support.fleet import AGENT, OPERATOR, RULES, fetch_rows, limit_examples, register

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


async def list_audit_entries(
    database: Database, audit_filter: AuditFilter = EVERY_ENTRY
) -> list[AuditEntry]:
    """Return the entries that match the filter, oldest first."""
    async with database.read() as session:
        page = await audit.list_entries(session, audit_filter, first=1000, after=None)
    return list(reversed(page.rows))


async def set_maintenance(database: Database, *, enabled: bool) -> None:
    async with database.write() as session:
        if enabled:
            await nodes.start_maintenance(session, "a", note=None, until=None, caller=OPERATOR)
        else:
            await nodes.end_maintenance(session, "a", rules=RULES, note=None, caller=OPERATOR)


async def record_rejections(database: Database, caller: Caller = OPERATOR, times: int = 1) -> None:
    for _ in range(times):
        async with database.write() as session:
            await audit.record_rejection(
                session, caller=caller, action="node.deregister", subject="a", code="FORBIDDEN"
            )


async def test_entry_has_actor_address_and_request_id(
    database: Database,
) -> None:
    with structlog.contextvars.bound_contextvars(request_id="request-1"):
        await register(database, "a")
    [entry] = await list_audit_entries(database)
    assert (entry.actor, entry.address, entry.request_id) == ("agent", "192.0.2.10", "request-1")
    assert (entry.action, entry.subject, entry.outcome) == ("node.register", "a", "ok")
    [(age,)] = await fetch_rows(database, "SELECT now() - recorded_at FROM audit_log")
    assert timedelta(0) <= age < timedelta(minutes=1)


async def test_rolled_back_action_leaves_no_entry(database: Database) -> None:
    await register(database, "a")
    async with database.write() as session:
        await nodes.deregister(session, "a", note=None, caller=OPERATOR)
        await session.rollback()
    with pytest.raises(NodeNotFound):
        async with database.write() as session:
            await nodes.deregister(session, "b", note=None, caller=OPERATOR)
    with pytest.raises(BadInput):
        async with database.write() as session:
            await nodes.start_maintenance(session, "a", note=None, until=EPOCH, caller=OPERATOR)
    with pytest.raises(NodeIdTaken):
        await register(database, "a", "boot-2")
    assert [entry.action for entry in await list_audit_entries(database)] == ["node.register"]


async def test_registration_entry_has_the_node_before_and_after(database: Database) -> None:
    await register(database, "a", name="First", labels=["x"], capabilities={"models": ["llama"]})
    await register(database, "a", name="Second", ip_address="192.0.2.1", metadata={"rack": 7})
    created, changed = await list_audit_entries(database)
    assert created.before is None
    assert created.after is not None
    assert created.after | {"bootSince": None} == {
        "name": "First",
        "role": "development",
        "type": "worker",
        "labels": ["x"],
        "ipAddress": None,
        "localIp": None,
        "hostname": None,
        "status": "online",
        "statusReason": "registered",
        "maintenanceUntil": None,
        "bootSince": None,
        "capabilities": {"models": ["llama"]},
        "metadata": {},
    }
    assert changed.before is not None
    assert changed.after is not None
    assert {key: changed.before[key] for key in ("name", "ipAddress", "metadata")} == {
        "name": "First",
        "ipAddress": None,
        "metadata": {},
    }
    assert {key: changed.after[key] for key in ("name", "ipAddress", "metadata")} == {
        "name": "Second",
        "ipAddress": "192.0.2.1",
        "metadata": {"rack": 7},
    }


async def test_registration_that_changes_nothing_has_no_entry(database: Database) -> None:
    for _ in range(2):
        await register(database, "a", capabilities={"models": ["x" * 1000]}, metadata={"b": 1})
    assert len(await list_audit_entries(database)) == 1


async def test_registration_entry_has_the_resulting_status(database: Database) -> None:
    await register(database, "node-1-hetzner-gex44")
    [entry] = await list_audit_entries(database)
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["status"], entry.before["statusReason"]) == ("offline", "seeded")
    assert (entry.after["status"], entry.after["statusReason"]) == ("online", "registered")


async def test_boot_ids_are_not_in_the_audit_log(
    database: Database,
) -> None:
    host = {"hostname": "host", "local_ip": "10.0.0.1"}
    await register(database, "a", "secret-run-1", **host)
    await register(database, "a", "secret-run-2", replaces_boot_id="secret-run-1", **host)
    first, second = await list_audit_entries(database)
    assert first.after is not None
    assert second.after is not None
    assert first.after["bootSince"] < second.after["bootSince"]
    [(leak_count,)] = await fetch_rows(
        database, "SELECT count(*) FROM audit_log a WHERE to_json(a)::text LIKE '%secret-run%'"
    )
    assert leak_count == 0


async def test_profiles_of_a_registration_have_entries_of_their_own(database: Database) -> None:
    profile = ProfileContent("llm", ProfileType.LLM, {"model": "x"})
    await register(database, "a", profiles=[profile])
    await register(database, "a", profiles=[profile])
    assert [(entry.action, entry.subject) for entry in await list_audit_entries(database)] == [
        ("node.register", "a"),
        ("profile.set", "a/llm"),
    ]


async def test_entries_of_maintenance_and_removal_have_the_node_before_and_after(
    database: Database,
) -> None:
    await register(database, "a")
    await set_maintenance(database, enabled=True)
    await set_maintenance(database, enabled=False)
    await set_maintenance(database, enabled=False)
    async with database.write() as session:
        await nodes.deregister(session, "a", note=None, caller=OPERATOR)
    statuses = [
        (
            entry.action,
            entry.before and (entry.before["status"], entry.before["statusReason"]),
            entry.after and (entry.after["status"], entry.after["statusReason"]),
        )
        for entry in (await list_audit_entries(database))[1:]
    ]
    online, maintenance = ("online", "registered"), ("maintenance", "maintenance_started")
    ended = ("online", "maintenance_ended")
    assert statuses == [
        ("node.set_maintenance", online, maintenance),
        ("node.set_maintenance", maintenance, ended),
        ("node.set_maintenance", ended, ended),
        ("node.deregister", ended, None),
    ]
    for entry in (await list_audit_entries(database))[1:]:
        assert (entry.actor, entry.address) == ("op", "192.0.2.20")
    rows = await fetch_rows(database, "SELECT status, status_reason FROM nodes WHERE node_id = 'a'")
    assert rows == [("offline", "deregistered")]


async def test_rejection_entry_has_the_error_code(database: Database) -> None:
    with structlog.contextvars.bound_contextvars(request_id="request-1"):
        await record_rejections(database)
    [entry] = await list_audit_entries(database)
    assert (entry.actor, entry.address, entry.request_id) == ("op", "192.0.2.20", "request-1")
    assert (entry.outcome, entry.before, entry.after) == ("FORBIDDEN", None, None)


async def count_entries(database: Database, **conditions: Any) -> list[tuple[str, int]]:
    """Return the subject and the count of each entry that matches, oldest first."""
    entries = await list_audit_entries(database, AuditFilter(**conditions))
    return [(entry.subject, entry.count) for entry in entries]


async def test_identical_rejections_are_counted_in_one_entry(database: Database) -> None:
    await record_rejections(database, times=62)
    await record_rejections(database, Caller(OPERATOR.identity, "192.0.2.99"))
    await record_rejections(database, Caller(Identity("other", Role.VIEWER)))
    assert await count_entries(database) == [("a", 62), ("a", 1), ("a", 1)]
    entry, *_ = await list_audit_entries(database)
    assert entry.last_recorded_at is not None
    assert entry.recorded_at < entry.last_recorded_at


async def test_concurrent_identical_rejections_are_counted_in_one_entry(
    database: Database,
) -> None:
    await asyncio.gather(*(record_rejections(database, times=5) for _ in range(8)))
    assert await count_entries(database) == [("a", 40)]


async def test_repetitions_are_counted_for_an_hour(database: Database) -> None:
    await record_rejections(database)
    for minutes, expected in ((59, [("a", 2)]), (2, [("a", 2), ("a", 1)])):
        async with database.write() as session:
            await session.execute(
                text("UPDATE audit_log SET recorded_at = recorded_at - make_interval(mins => :n)"),
                {"n": minutes},
            )
        await record_rejections(database)
        assert await count_entries(database) == expected


async def test_database_counts_in_no_entry_older_than_an_hour(database: Database) -> None:
    await record_rejections(database)
    for minutes, expected in ((59, True), (2, False)):
        async with database.write() as session:
            await session.execute(
                text("UPDATE audit_log SET recorded_at = recorded_at - make_interval(mins => :n)"),
                {"n": minutes},
            )
            count = "SELECT repeat_audit_entry(max(id)) FROM audit_log"
            assert await session.scalar(text(count)) is expected


async def test_an_entry_is_found_by_its_last_repetition(database: Database) -> None:
    await record_rejections(database)
    async with database.write() as session:
        await session.execute(
            text("UPDATE audit_log SET recorded_at = recorded_at - interval '50 min'")
        )
    recent = AuditFilter(since=datetime.now(UTC) - timedelta(minutes=10))
    assert await list_audit_entries(database, recent) == []
    await record_rejections(database)
    assert len(await list_audit_entries(database, recent)) == 1


async def test_an_action_that_is_repeated_at_once_is_counted(database: Database) -> None:
    await register(database, "a")
    for enabled in (True, False, False, False, True, False):
        await set_maintenance(database, enabled=enabled)
    entries = [
        (entry.after and entry.after["status"], entry.count)
        for entry in await list_audit_entries(database, AuditFilter(actor="op"))
    ]
    assert entries == [
        ("maintenance", 1),
        ("online", 1),
        ("online", 2),
        ("maintenance", 1),
        ("online", 1),
    ]


async def reject_subjects(database: Database, subjects: Iterable[str]) -> None:
    for subject in subjects:
        async with database.write() as session:
            await audit.record_rejection(
                session, caller=OPERATOR, action="node.deregister", subject=subject, code="X"
            )


async def test_rejections_beyond_a_rate_are_counted_together(database: Database) -> None:
    maximum = MAX_REJECTIONS_PER_MINUTE
    await reject_subjects(database, (f"node-{n}" for n in range(maximum + 20)))
    await reject_subjects(database, ["node-0"])
    entries = await count_entries(database, actor="op")
    assert entries == [
        ("node-0", 2),
        *((f"node-{n}", 1) for n in range(1, maximum)),
        (OTHER_SUBJECTS, 20),
    ]
    async with database.write() as session:
        await session.execute(
            text("UPDATE audit_log SET recorded_at = recorded_at - interval '1 min'")
        )
    await reject_subjects(database, ["new"])
    assert (await count_entries(database, actor="op"))[-1] == ("new", 1)


async def test_rejections_of_an_hour_are_bounded_too(database: Database) -> None:
    rows = """
    INSERT INTO audit_log (recorded_at, actor, action, subject, outcome)
    SELECT now() - interval '30 min', 'op', 'node.deregister', 'node-' || n, 'X'
    FROM generate_series(1, :count) AS n
    """
    async with database.write() as session:
        await session.execute(text(rows), {"count": MAX_REJECTIONS_PER_HOUR})
    await reject_subjects(database, ["new", "newer"])
    assert await count_entries(database, subject=OTHER_SUBJECTS) == [(OTHER_SUBJECTS, 2)]


async def test_successful_actions_do_not_count_as_rejections(database: Database) -> None:
    for _ in range(MAX_REJECTIONS_PER_MINUTE + 1):
        await register(database, "a")
    await record_rejections(database, AGENT)
    assert (
        len(await list_audit_entries(database, AuditFilter(actor="agent", outcome="FORBIDDEN")))
        == 1
    )


INSTANTS = st.integers(0, 5).map(lambda n: EPOCH + timedelta(minutes=n))
WORDS = {
    "actor": st.sampled_from(["op", "agent"]),
    "action": st.sampled_from(["node.register", "profile.set"]),
    "subject": st.sampled_from(["a", "b", "a/llm"]),
    "outcome": st.sampled_from(["ok", "FORBIDDEN", "BAD_INPUT"]),
}
ENTRIES = st.lists(st.fixed_dictionaries({**WORDS, "recorded_at": INSTANTS}), max_size=12)
NOTHING = st.none()
FILTERS = st.builds(
    AuditFilter,
    *(NOTHING | words for words in WORDS.values()),
    since=NOTHING | INSTANTS,
    until=NOTHING | INSTANTS,
)


def _is_match(audit_filter: AuditFilter, entry: dict[str, Any]) -> bool:
    return (
        all(
            getattr(audit_filter, name) in {None, entry[name]}
            for name in ("actor", "action", "subject", "outcome")
        )
        and (audit_filter.since is None or entry["recorded_at"] >= audit_filter.since)
        and (audit_filter.until is None or entry["recorded_at"] < audit_filter.until)
    )


@given(ENTRIES, FILTERS, st.integers(1, 4))
@limit_examples(80)
async def test_pages_list_each_matching_entry_once_and_newest_first(
    database: Database, entries: list[dict[str, Any]], audit_filter: AuditFilter, first: int
) -> None:
    listed: list[AuditEntry] = []
    async with database.write() as session:
        await session.execute(text("DELETE FROM audit_log"))
        ids = (
            list(await session.scalars(insert(AuditEntry).returning(AuditEntry.id), entries))  # type: ignore[call-overload]
            if entries
            else []
        )
        after = None
        while True:
            page = await audit.list_entries(session, audit_filter, first=first, after=after)
            assert len(page.rows) <= first
            listed += page.rows
            if not page.has_next:
                break
            last = page.rows[-1]
            after = audit.ENTRY_KEYSET.encode_cursor(last.recorded_at, last.id)
    expected = [
        (entry["recorded_at"], id_)
        for entry, id_ in zip(entries, ids, strict=True)
        if _is_match(audit_filter, entry)
    ]
    assert [(entry.recorded_at, entry.id) for entry in listed] == sorted(expected, reverse=True)


MANY = """
INSERT INTO audit_log (recorded_at, actor, action, subject, outcome)
SELECT timestamptz '2026-01-01' + make_interval(secs => n), 'actor-' || n % 1000,
       'action-' || n % 20, 'node-' || n % 1000, CASE n % 200 WHEN 0 THEN 'FORBIDDEN' ELSE 'ok' END
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture
async def many_entries(database: Database) -> Database:
    async with database.write() as session:
        await session.execute(text(MANY))
    async with database.read() as session:
        await session.execute(text("VACUUM ANALYZE audit_log"))
    return database


def _walk_plan(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _walk_plan(child)


async def _explain(session: AsyncSession, statement: Any) -> list[dict[str, Any]]:
    compiled = statement.compile(
        dialect=session.get_bind().dialect, compile_kwargs={"render_postcompile": True}
    )
    connection = await session.connection()
    explanation = await connection.exec_driver_sql(
        f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {compiled}",
        tuple(compiled.params[name] for name in compiled.positiontup),
    )
    return list(_walk_plan(explanation.scalar_one()[0]["Plan"]))


@pytest.mark.parametrize(
    "audit_filter",
    [
        AuditFilter(),
        AuditFilter(actor="actor-7"),
        AuditFilter(action="action-7"),
        AuditFilter(subject="node-7"),
        AuditFilter(subject="nobody"),
        AuditFilter(outcome="FORBIDDEN"),
        AuditFilter(outcome="STALE_BOOT"),
        AuditFilter(outcome="ok"),
        AuditFilter(since=EPOCH + timedelta(hours=5)),
        AuditFilter(until=EPOCH + timedelta(hours=1)),
        AuditFilter(actor="actor-7", until=EPOCH + timedelta(hours=1)),
        AuditFilter(outcome="FORBIDDEN", since=EPOCH, until=EPOCH + timedelta(hours=1)),
    ],
    ids=str,
)
async def test_each_filter_reads_only_its_page(
    many_entries: Database, audit_filter: AuditFilter
) -> None:
    page = audit.ENTRY_KEYSET.select_page(
        audit.select_entries(audit_filter),
        first=20,
        after=audit.ENTRY_KEYSET.encode_cursor(EPOCH + timedelta(hours=5, minutes=30), 1),
    )
    async with many_entries.read() as session:
        steps = await _explain(session, page)
    assert not [step for step in steps if step["Node Type"] == "Seq Scan"]
    # The table has more than 200 blocks.
    assert steps[0]["Shared Hit Blocks"] + steps[0]["Shared Read Blocks"] <= 40


async def test_entries_past_the_retention_are_dropped_oldest_first_in_batches(
    database: Database,
) -> None:
    insert_aged_entries = """
    INSERT INTO audit_log (recorded_at, actor, action, subject)
    SELECT now() - make_interval(days => n), 'a', 'b', 'day ' || n FROM generate_series(1, 20) AS n
    """
    async with database.write() as session:
        await session.execute(text(insert_aged_entries))
        dropped = [await audit.trim_entries(session, keep_days=9.5, batch=5) for _ in range(4)]
    assert dropped == [5, 5, 1, 0]
    assert [entry.subject for entry in await list_audit_entries(database)] == [
        f"day {n}" for n in range(9, 0, -1)
    ]


@pytest.mark.parametrize(
    "cutoff", ["now() - interval '6 days 23 h'", "now()", "'infinity'", "NULL"]
)
async def test_database_function_keeps_the_last_week_for_any_caller(
    database: Database, cutoff: str
) -> None:
    await record_rejections(database)
    with pytest.raises(DBAPIError, match="last seven days"):
        await fetch_rows(database, f"SELECT trim_audit_log({cutoff}, 10)")
    assert len(await list_audit_entries(database)) == 1
