"""Status changes followed from a scripted registry that sends anything."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from agent import follow, websocket
from agent.errors import RequestRejectedError
from agent.follow import follow_status_changes
from agent.replies import (
    Bookmark,
)
from tests.support.fake_time import Time
from tests.support.followers import SECONDS, follow_changes, read_changes, read_event

CUT = object()


def make_change(revision: int, note: str | None = None) -> dict[str, Any]:
    entry = {
        "revision": str(revision),
        "nodeId": "a",
        "previousStatus": "ONLINE",
        "status": "DEGRADED",
        "reason": "SELF_REPORTED",
        "note": note,
        "actor": "anonymous",
        "changedAt": "2026-11-23T16:00:00+00:00",
    }
    return {"__typename": "NodeStatusChanged", "change": entry, "node": None}


def make_bookmark(revision: int) -> dict[str, Any]:
    return {"__typename": "Bookmark", "revision": str(revision)}


def make_errors(code: str, **facts: object) -> list[dict[str, Any]]:
    return [{"message": "no", "extensions": {"code": code, **facts}}]


@dataclass(frozen=True)
class RejectHandshake:
    """A step that answers with that status instead of opening a websocket."""

    status: int


@dataclass(frozen=True)
class CloseAtInit:
    """A step that closes with that code instead of acknowledging; without a code it hangs."""

    code: int | None


HANG_AT_QUERY = object()


@dataclass
class ScriptedStream:
    """A registry with a script for each connection: the steps that it sends its subscriber.

    Events are dicts, errors lists, other messages text or bytes, closing codes numbers.
    """

    scripts: list[list[object]]
    url: str = ""
    queries: int = 0
    afters: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    sent: int = 0

    def shake_hands(self, connection: ServerConnection, request: Request) -> Response | None:
        self.tokens.append(request.headers.get("Authorization"))
        match self.scripts[0]:
            case [RejectHandshake(status)]:
                self.scripts.pop(0)
                response = connection.respond(status, "no")
                response.headers["Retry-After"] = "7"
                return response
        return None

    async def serve(self, connection: ServerConnection) -> None:
        script = self.scripts.pop(0)
        try:
            await connection.recv()
            if script and isinstance(script[0], CloseAtInit):
                if script[0].code is not None:
                    await connection.close(script[0].code)
                await connection.wait_closed()
            await connection.send(json.dumps({"type": "connection_ack"}))
            message = json.loads(await connection.recv())
            if "registry" in message["payload"]["query"]:
                self.queries += 1
                if script == [HANG_AT_QUERY]:
                    await connection.wait_closed()
                await self.send_data(connection, message["id"], {"registry": {"revision": "5"}})
                await connection.send(json.dumps({"id": message["id"], "type": "complete"}))
                message = json.loads(await connection.recv())
            self.afters.append(message["payload"]["variables"]["after"])
            for step in script:
                await self.execute_step(step, connection, message["id"])
                self.sent += 1
            await connection.wait_closed()
        except ConnectionClosed:
            pass

    async def execute_step(
        self, step: object, connection: ServerConnection, operation: str
    ) -> None:
        if isinstance(step, dict):
            await self.send_data(connection, operation, {"nodeStatusChanges": step})
        elif isinstance(step, list):
            rejection = {"id": operation, "type": "error", "payload": step}
            await connection.send(json.dumps(rejection))
        elif isinstance(step, str | bytes):
            await connection.send(step)
        elif isinstance(step, int):
            await connection.close(step)
        else:
            connection.transport.abort()

    async def send_data(
        self, connection: ServerConnection, operation: str, data: dict[str, Any]
    ) -> None:
        message = {"id": operation, "type": "next", "payload": {"data": data}}
        await connection.send(json.dumps(message))


@asynccontextmanager
async def run_scripted_stream(*scripts: list[object]) -> AsyncIterator[ScriptedStream]:
    registry = ScriptedStream(list(scripts))
    protocol = [Subprotocol(websocket.PROTOCOL)]
    async with serve(
        registry.serve,
        "127.0.0.1",
        0,
        subprotocols=protocol,
        compression=None,
        process_request=registry.shake_hands,
    ) as server:
        registry.url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/graphql"
        yield registry


async def test_a_connection_cut_before_the_subscription_loses_no_change() -> None:
    async with (
        run_scripted_stream([CUT], [make_change(6), make_change(7)]) as registry,
        follow_changes(registry.url) as events,
    ):
        assert await read_event(events) == Bookmark(revision=5)
        assert await read_changes(events, 2) == [6, 7]
    assert registry.afters == ["5", "5"]
    assert registry.queries == 1


async def test_a_resync_restarts_the_stream_at_its_revision() -> None:
    resync = {"__typename": "ResyncRequired", "revision": "3", "reason": "it was set back"}
    async with (
        run_scripted_stream([make_change(6), resync], [make_change(4), make_change(5)]) as registry,
        follow_changes(registry.url, after=5) as events,
    ):
        received = [await read_event(events) for _ in range(4)]
    assert [event.revision for event in received] == [6, 3, 4, 5]
    assert registry.afters == ["5", "3"]


async def test_repeated_events_are_dropped() -> None:
    script: list[object] = [
        make_change(6),
        make_change(6),
        make_change(5),
        make_bookmark(5),
        make_change(7),
        make_bookmark(7),
    ]
    async with (
        run_scripted_stream(script) as registry,
        follow_changes(registry.url, after=5) as events,
    ):
        received = [await read_event(events) for _ in range(3)]
    assert [event.revision for event in received] == [6, 7, 7]


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([CloseAtInit(4403)], "FORBIDDEN"),
        ([CloseAtInit(4401)], "UNAUTHENTICATED"),
        ([4403], "FORBIDDEN"),
        ([make_errors("UNAUTHENTICATED", retryable=False)], "UNAUTHENTICATED"),
    ],
)
async def test_a_rejected_token_is_raised(script: list[object], code: str) -> None:
    async with (
        run_scripted_stream(script) as registry,
        follow_changes(registry.url, after=5) as events,
    ):
        with pytest.raises(RequestRejectedError) as caught:
            await read_event(events)
    assert caught.value.code == code


async def test_the_token_is_sent_in_the_handshake_and_its_rejection_is_raised() -> None:
    async with (
        run_scripted_stream([RejectHandshake(401)]) as registry,
        follow_changes(registry.url, token="the-token") as events,
    ):
        with pytest.raises(RequestRejectedError, match="UNAUTHENTICATED") as caught:
            await read_event(events)
    assert registry.tokens == ["Bearer the-token"]
    assert "the-token" not in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        *(CUT, CloseAtInit(1013), 1000, 1001, 1011, 1012, 1013, 4400, 4408, 4429),
        make_errors("UNAVAILABLE", retryable=True),
        make_errors("RATE_LIMITED", retryable=True, retryAfterSeconds=0.01),
        make_errors("INTERNAL", retryable=False),
        [],
        [1],
        '{"id":"1","type":"complete"}',
        '{"id":"1","type":"next","payload":{"data":null,"errors":[{"message":"no"}]}}',
        '{"id":"1","type":"next","payload":{"data":{"nodeStatusChanges":{"__typename":"New"}}}}',
        '{"id":"1","type":"next","payload":{"data":{"nodeStatusChanges":null}}}',
        '{"id":"1","type":"next","payload":7}',
        '{"id":{},"type":"next"}',
        *("[1]", "null", '"x"', "1", "{", "", "[" * 100_000, b"\x00"),
    ],
)
async def test_a_follower_reconnects_after_any_other_failure(step: object) -> None:
    async with (
        run_scripted_stream([step], [make_change(6)]) as registry,
        follow_changes(registry.url, after=5) as events,
    ):
        assert await read_changes(events, 1) == [6]


@pytest.mark.parametrize("step", [CloseAtInit(None), HANG_AT_QUERY])
async def test_a_registry_that_does_not_answer_is_abandoned_after_the_timeout(
    step: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (websocket, follow):
        monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)
    with capture_logs() as logs:
        async with (
            run_scripted_stream([step], [make_change(6)]) as registry,
            follow_changes(registry.url) as events,
        ):
            assert await read_event(events) == Bookmark(revision=5)
            assert await read_changes(events, 1) == [6]
    assert logs[0]["reason"] == "no answer within 0.1 s"


@pytest.mark.parametrize(
    "busy",
    [
        make_errors("RATE_LIMITED", retryable=True, retryAfterSeconds=7),
        RejectHandshake(429),
        RejectHandshake(503),
    ],
)
async def test_the_requested_delay_is_added_before_the_own_delay(busy: object) -> None:
    time = Time()
    async with (
        run_scripted_stream([busy], [make_change(6)]) as registry,
        follow_changes(registry.url, after=5, clock=time.clock) as events,
    ):
        await read_event(events)
    assert time.now == 7 + 1


async def test_delays_grow_to_ten_seconds_until_an_event_arrives_and_outages_are_logged() -> None:
    time = Time()
    scripts: list[list[object]] = [
        [1012],
        [1013],
        *[[CUT]] * 4,
        [make_change(6), CUT],
        [make_change(7)],
    ]
    with capture_logs() as logs:
        async with (
            run_scripted_stream(*scripts) as registry,
            follow_changes(registry.url, after=5, clock=time.clock) as events,
        ):
            assert await read_changes(events, 2) == [6, 7]
    assert time.now == (1 + 2 + 4 + 8 + 10 + 10) + 1
    log_events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert log_events == ["request.failed", "registry.recovered"] * 2
    assert registry.afters == ["5"] * 7 + ["6"]


async def test_a_slow_follower_needs_bounded_memory_and_receives_every_change() -> None:
    note = "x" * 32_768
    script: list[object] = [make_change(revision, note) for revision in range(1, 1001)]
    async with (
        run_scripted_stream(script) as registry,
        follow_changes(registry.url, after=0) as events,
    ):
        assert await read_changes(events, 1) == [1]
        sent = -1
        while sent < registry.sent:
            sent = registry.sent
            await asyncio.sleep(0.1)
        assert 1 < sent < 600  # the kernel buffers these; the rest waits at the registry
        assert await read_changes(events, 999) == list(range(2, 1001))
    assert registry.afters == ["0"]


async def test_a_follower_cancelled_while_it_connects_leaves_no_socket() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        writer.close()
        left.set()

    async with await asyncio.start_server(hang, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await check_cancellation(url, arrived, left)


async def test_a_follower_cancelled_while_it_waits_for_the_ack_leaves_no_socket() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def hang(connection: ServerConnection) -> None:
        await connection.recv()
        arrived.set()
        await connection.wait_closed()
        left.set()

    protocol = [Subprotocol(websocket.PROTOCOL)]
    async with serve(hang, "127.0.0.1", 0, subprotocols=protocol) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        await check_cancellation(url, arrived, left)


async def check_cancellation(url: str, arrived: asyncio.Event, left: asyncio.Event) -> None:
    task = asyncio.create_task(read_event(follow_status_changes(url)))
    async with asyncio.timeout(SECONDS):
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left.wait()


async def test_an_invalid_address_is_raised() -> None:
    async with follow_changes("ftp://registry") as events:
        with pytest.raises(ValueError, match="expected an address"):
            await read_event(events)
