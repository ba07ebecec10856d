"""Every background task skips an item that it cannot handle; the registry goes on.

Each case gives one task a poison item and a good one, and checks that the good one is handled.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from structlog.types import EventDict

from db.access import audit
from db.core import rate_channel
from db.core.enums import NodeStatus, Role, StatusReason
from db.core.identity import Caller, Identity
from db.registry import history, nodes, status_changes
from db.registry.status_changes import Transition
from db.routing.matching import NO_REQUIREMENTS, Requirements
from graph.auth import rate_limiter, rate_sync
from graph.auth.credential_verifier import Grant
from graph.auth.jwks import KeySet
from graph.live.candidate_watch import CandidateWatch, WatchFailed
from graph.live.housekeeping import Housekeeping
from graph.live.rejection_log import Attempt
from graph.server.tls_context import ReloadingContext
from graph.telemetry.peer_metrics import PeerMetrics
from tests.support.api import BEAT, CHANGES, beat, register, wait_until_connected
from tests.support.item_failures import count_item_failures
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

UNREADABLE = '{"x": 1e999}'
"""JSON that PostgreSQL stores and no program reads as a number."""


@dataclass(frozen=True)
class Trial:
    """A server, whose task is given a poison item, and what else a case needs."""

    server: LiveServer
    task: str
    failures_before: float
    monkeypatch: pytest.MonkeyPatch
    folder: Path

    @property
    def failures(self) -> float:
        return count_item_failures(self.task) - self.failures_before

    async def execute(self, *statements: str) -> None:
        for statement in statements:
            async with self.server.services.database.write() as session:
                await session.execute(text(statement))

    async def reject_writes(self, table: str, condition: str) -> None:
        """Have the database reject each row that meets the condition on NEW."""
        await self.execute(
            f"""CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF {condition} THEN RAISE EXCEPTION 'a poison item'; END IF;
                    RETURN NEW;
                END $$""",
            f"""CREATE TRIGGER reject BEFORE INSERT OR UPDATE ON {table}
                FOR EACH ROW EXECUTE FUNCTION reject()""",
        )

    async def notify(self, channel: str, payload: str) -> None:
        async with self.server.services.database.write() as session:
            await session.execute(select(func.pg_notify(channel, payload)))


Case = Callable[[Trial], Awaitable[None]]
CASES: list[tuple[str, Case]] = []


def case(task: str) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES.append((task, function))
        return function

    return add


async def check_that_changes_arrive(server: LiveServer) -> None:
    revision = server.services.change_feed.revision
    await register(server, "good")
    await wait_until(lambda: server.services.change_feed.revision == revision + 1)


@case("change_feed")
async def notification_without_a_revision(trial: Trial) -> None:
    server = trial.server
    await wait_until_connected(server)
    for payload in ("", "x", "-1", "9" * 5000, "1" * 20, "٣"):
        failures = trial.failures
        await trial.notify(status_changes.CHANNEL, payload)
        await wait_until(lambda: trial.failures == failures + 1)  # noqa: B023  # called at once
    await check_that_changes_arrive(server)


@case("change_feed")
async def notification_whose_handler_fails(trial: Trial) -> None:
    server = trial.server
    await wait_until_connected(server)
    trial.monkeypatch.setattr("graph.auth.rate_sync._PAYLOAD", None)
    await trial.notify(rate_channel.CHANNEL, "x")
    await wait_until(lambda: trial.failures)
    await check_that_changes_arrive(server)


@case("change_feed")
async def change_that_cannot_be_read(trial: Trial) -> None:
    server = trial.server
    revision = server.services.change_feed.revision
    async with connect(server.websocket_url) as follower:
        await follower.subscribe("1", CHANGES)
        await wait_until(lambda: server.services.change_feed.subscriber_count)
        await register(server, "bad")
        async with server.services.database.write() as session:
            bad = await nodes.find_node(session, "bad")
            assert bad is not None
            documents = text("UPDATE nodes SET capabilities = :unreadable WHERE node_id = 'bad'")
            await session.execute(documents, {"unreadable": UNREADABLE})
            await status_changes.apply_transitions(
                session,
                [
                    Transition(
                        bad.id, bad.status, NodeStatus.OFFLINE, StatusReason.MISSED_HEARTBEATS
                    )
                ],
            )
        await register(server, "good")
        event: dict[str, Any] = {}
        while event.get("__typename") != "ResyncRequired":
            event = (await follower.receive())["payload"]["data"]["nodeStatusChanges"]
    await wait_until(lambda: server.services.change_feed.revision == revision + 3)
    async with connect(server.websocket_url) as follower:
        await follower.subscribe("1", CHANGES, after=str(revision + 2))
        event = (await follower.receive())["payload"]["data"]["nodeStatusChanges"]
        assert event["change"]["nodeId"] == "good"


@case("node_snapshot")
async def node_whose_documents_cannot_be_read(trial: Trial) -> None:
    server = trial.server
    for node_id in ("bad", "worse", "good"):
        await register(server, node_id)
        await beat(server, node_id, 1)
    await trial.execute(
        f"UPDATE nodes SET capabilities = '{UNREADABLE}' WHERE node_id = 'bad'",  # noqa: S608  # nothing in it comes from outside
        f"UPDATE nodes SET metadata = '{UNREADABLE}' WHERE node_id = 'worse'",  # noqa: S608  # nothing in it comes from outside
    )
    query = "{ availableNodes(require: {}) { candidates { node { nodeId } } } }"
    body = await server.execute(query)
    candidates = [found["node"]["nodeId"] for found in body["availableNodes"]["candidates"]]
    assert candidates == ["good"]
    await wait_until(lambda: trial.failures >= 2)


@case("node_snapshot")
async def watch_that_fails(trial: Trial) -> None:
    server = trial.server
    bad = Requirements(model="bad")
    apply_movement = CandidateWatch.apply_movement

    def fail_for_bad(watch: CandidateWatch, *arguments: Any) -> None:
        if watch is watches["bad"]:
            raise RuntimeError("as a test")
        apply_movement(watch, *arguments)

    watches: dict[str, CandidateWatch] = {}
    snapshot = server.services.node_snapshot
    async with (
        snapshot.open_watch(bad) as watches["bad"],
        snapshot.open_watch(NO_REQUIREMENTS) as watches["good"],
    ):
        trial.monkeypatch.setattr(CandidateWatch, "apply_movement", fail_for_bad)
        await register(server, "good")
        await beat(server, "good", 1)
        async with asyncio.timeout(10):
            assert await watches["good"].wait_for_step(0)
            with pytest.raises(WatchFailed):
                await watches["bad"].wait_for_step(0)
        async with snapshot.open_watch(bad) as fresh:
            assert fresh is not watches["bad"]


@case("sweeper")
async def node_that_cannot_be_changed(trial: Trial) -> None:
    server = trial.server
    for node_id in ("a", "bad", "good"):
        await register(server, node_id)
        await beat(server, node_id, 1)
    await trial.reject_writes("nodes", "NEW.node_id = 'bad' AND NEW.status <> 'online'")
    await trial.execute(
        "UPDATE nodes SET heard_at = heard_at - interval '20 s'",
        "UPDATE registry_state SET lease_floor = lease_floor - interval '1 h'",
    )
    result = await server.services.sweeper.sweep()
    assert result.changed_nodes == 2
    assert not result.has_more
    async with server.services.database.read() as session:
        counts = await nodes.count_nodes_by_status(session)
    assert counts["degraded"] == 2  # type: ignore[index]  # the enum's members are texts


@case("housekeeping")
async def step_that_fails(trial: Trial) -> None:
    server = trial.server
    settings, metrics = server.services.settings, type(server.services.metrics)()
    housekeeping = Housekeeping(server.services.database, settings, metrics)
    await trial.execute("ALTER TABLE heartbeat_log RENAME TO moved")
    await housekeeping.run_once()
    failed = trial.failures
    assert failed >= 1
    await trial.execute("ALTER TABLE moved RENAME TO heartbeat_log")
    await housekeeping.run_once()
    assert trial.failures == failed


@case("heartbeat_writer")
async def heartbeat_that_cannot_be_written(trial: Trial) -> None:
    server = trial.server
    names = [f"node-{number}" for number in range(20)]
    for name in [*names, "bad"]:
        await register(server, name)
    await trial.reject_writes("nodes", "NEW.node_id = 'bad'")
    sent = {"nodeId": "bad", "bootId": "boot-1", "sequence": 1}
    outcomes = await asyncio.gather(
        server.post(BEAT, input=sent), *(beat(server, name, 1) for name in names)
    )
    assert outcomes[0]["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert {outcome["status"] for outcome in outcomes[1:]} == {"ONLINE"}


@case("heartbeat_tail")
async def heartbeat_that_cannot_be_read(trial: Trial) -> None:
    server = trial.server
    tail, database = server.services.heartbeat_tail, server.services.database
    for node_id in ("bad", "good"):
        await register(server, node_id)
        await beat(server, node_id, 1)
    async with database.read() as session:
        rows = {name: await nodes.find_node(session, name) for name in ("bad", "good")}
        ids = {name: row.id for name, row in rows.items() if row is not None}
        newest = await history.find_newest_heartbeat_ids(session, list(ids.values()))
    with (
        tail.subscribe(ids["bad"], newest[ids["bad"]] - 1) as bad,
        tail.subscribe(ids["good"], newest[ids["good"]] - 1) as good,
    ):
        await trial.execute(
            f"UPDATE heartbeat_log SET metrics = '{UNREADABLE}' WHERE node_id = '{ids['bad']}'",  # noqa: S608  # nothing in it comes from outside
        )
        async with asyncio.timeout(10):
            await good.arrived.wait()
            assert [beat.id for beat in good.waiting] == [newest[ids["good"]]]
            await beat(server, "bad", 2)
            await bad.arrived.wait()
    assert len(bad.waiting) == 1


@case("credential_verifier")
async def watcher_that_fails(_trial: Trial) -> None:
    def fail() -> None:
        raise RuntimeError("as a test")

    grant, ended = Grant(Identity("somebody", Role.VIEWER)), []
    for watcher in (fail, lambda: ended.append(1)):
        grant.watch(watcher)
    grant.end()
    assert ended == [1]


@case("rate_sync")
async def key_that_fits_no_payload(trial: Trial) -> None:
    server = trial.server
    trial.monkeypatch.setattr(rate_limiter, "MAX_KEY_LENGTH", 10**9)
    limiter = server.services.authentication.failed_logins
    for key in ("x" * 8100, "\ud800", "\0" * 3000, "good"):
        limiter.charge(key, 10)
    payloads = rate_sync.RateSync(server.services.database, [limiter]).make_payloads(1)
    assert "good" in "".join(payloads)
    assert trial.failures == 3


@case("rate_sync")
async def payload_that_cannot_be_sent(trial: Trial) -> None:
    server = trial.server
    trial.monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.01)
    received: list[str] = []
    sender = rate_sync.RateSync(server.services.database, [])
    payloads = ["x" * 9000, "good"]
    trial.monkeypatch.setattr(
        sender, "make_payloads", lambda _: [payloads.pop()] if payloads else []
    )
    trial.monkeypatch.setattr(rate_channel, "CHANNEL", "poison_items")
    async with server.services.database.open_listen_connection() as connection:
        await connection.add_listener("poison_items", lambda *sent: received.append(sent[-1]))
        payloads.reverse()
        running = asyncio.create_task(sender.run())
        await wait_until(lambda: received == ["good"])
        running.cancel()


@case("rejection_log")
async def attempt_that_cannot_be_recorded(trial: Trial) -> None:
    server = trial.server
    await trial.reject_writes("audit_log", "NEW.subject = 'bad'")
    caller = Caller(Identity("somebody", Role.VIEWER), "x" * 8100)
    subjects = ("bad", "good", "\0\ud800", "é" * 5000, "é" * 5000)
    attempts = [Attempt("node.remove", subject) for subject in subjects]
    await server.services.rejections.record(caller, "FORBIDDEN", attempts)
    async with server.services.database.read() as session:
        page = await audit.list_entries(
            session, audit.AuditFilter(actor="somebody"), first=10, after=None
        )
    assert [len(entry.subject) for entry in page.rows] == [audit.MAX_TEXT_BYTES // 2, 2, 4]


@case("jwks")
async def key_set_that_cannot_be_handled(_trial: Trial) -> None:
    class Source:
        max_age_seconds = min_interval_seconds = 0.0

        async def read(self) -> bytes | None:
            raise RecursionError("as a test")

    with pytest.raises(Exception, match="the keys of the issuer"):
        await KeySet(Source()).find(None, "RS256")


@case("peer_metrics")
async def peer_that_sends_no_metrics(trial: Trial) -> None:
    folder = trial.folder / "peers"
    calls: list[int] = []

    async def generate() -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("as a test")
        return b"# TYPE good gauge\ngood 1\n"

    async def respond(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff{{{ 1\n")
        writer.close()

    metrics = PeerMetrics(folder, "0")
    serving = asyncio.create_task(metrics.serve(generate))
    await wait_until((folder / "0").exists)
    async with await asyncio.start_unix_server(respond, folder / "1"):
        assert b"good" not in await metrics.collect()
        assert b'good{worker="0"} 1.0' in await metrics.collect()
    serving.cancel()


@case("tls")
async def file_that_cannot_be_handled(_trial: Trial) -> None:
    checks: list[int] = []

    class Context(ReloadingContext):
        _certificate = Path("x")

        def __init__(self) -> None:
            pass

        def reload_if_changed(self) -> None:
            checks.append(1)
            raise RuntimeError("as a test")

    watching = asyncio.create_task(Context().watch_files(0.001))
    await wait_until(lambda: len(checks) > 2)
    watching.cancel()


@pytest.mark.parametrize(
    ("task", "run_case"), CASES, ids=[f"{task}-{function.__name__}" for task, function in CASES]
)
async def test_a_poison_item_is_skipped_logged_and_counted(
    task: str,
    run_case: Case,
    *,
    start_server: StartServer,
    logged: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    options = {"heartbeat_stream_seconds": 0.02, "sweep_interval_seconds": 3600}
    before = count_item_failures(task)
    async with start_server(**options) as server:
        trial = Trial(server, task, before, monkeypatch, tmp_path)
        await run_case(trial)
        assert trial.failures
        assert (await server.http.get("/health")).status_code == 200
        sample = f'node_registry_background_item_failures_total{{task="{task}"}}'
        assert sample in (await server.http.get("/metrics")).text
    events = [event for event in logged if event["event"] == "background_task.item_failed"]
    assert {event["task"] for event in events} == {task}
    logged[:] = [event for event in logged if event["log_level"] != "error"]
