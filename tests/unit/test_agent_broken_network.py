"""The agent's transport and runner with a registry that misbehaves over real sockets."""

import asyncio
import socket
from contextlib import aclosing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import documents, identity
from agent.errors import RegistryUnavailableError, RequestRejectedError
from agent.http_transport import HttpTransport
from agent.replies import NodeStatusData, RecordHeartbeatData
from agent.runner import SLOW_RETRY_SECONDS
from tests.support.fake_time import Time
from tests.support.scripted_registry import (
    DRIP,
    HANG,
    make_heartbeat_reply,
    make_registration_reply,
    make_rejection,
    make_reply,
    make_runner,
    run_scripted_registry,
)


async def send_heartbeat(url: str, timeout_seconds: float = 5.0) -> RecordHeartbeatData:
    async with aclosing(HttpTransport(url, None, timeout_seconds=timeout_seconds)) as connection:
        return await connection.execute(documents.RECORD_HEARTBEAT, {}, RecordHeartbeatData)


async def test_a_refused_connection_makes_the_registry_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/graphql"
        with pytest.raises(RegistryUnavailableError):
            await send_heartbeat(url)


async def test_a_registry_that_does_not_answer_is_abandoned_after_the_timeout() -> None:
    async with run_scripted_registry(HANG) as registry:
        started_at = asyncio.get_running_loop().time()
        with pytest.raises(RegistryUnavailableError, match=r"no answer within 0\.2 s"):
            await send_heartbeat(registry.url, timeout_seconds=0.2)
        assert asyncio.get_running_loop().time() - started_at < 2


async def test_a_registry_that_answers_byte_by_byte_is_abandoned_after_the_timeout() -> None:
    async with run_scripted_registry(DRIP) as registry:
        with pytest.raises(RegistryUnavailableError, match="no answer within"):
            await send_heartbeat(registry.url, timeout_seconds=0.3)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        make_reply(b"<html>Bad Gateway</html>" * 1000, "502 Bad Gateway"),
        make_reply(b"<html>Login</html>"),
        make_reply(b"", "204 No Content"),
        make_reply(b"moved", "301 Moved Permanently", "Location: https://elsewhere/\r\n"),
        make_reply(b"\xff\xfe"),
        make_reply(b"1"),
        make_reply(b"null"),
        make_reply(b'"errors"'),
        make_reply([]),
        make_reply(["errors"]),
        make_reply({}),
        make_reply({"data": None}),
        make_reply({"data": 1}),
        make_reply({"data": []}),
        make_reply({"data": {"recordHeartbeat": None}}),
        make_reply({"errors": 1}),
        make_reply({"errors": "no"}),
        make_reply({"errors": ["no"]}),
        make_reply({"errors": [{"extensions": {}}]}),
        make_reply(b"[" * 100_000),
        make_reply(b'{"data":' * 100_000),
        make_heartbeat_reply(interval=0.0),
        make_heartbeat_reply(interval=float("nan")),
        make_heartbeat_reply(interval=float("inf")),
        make_heartbeat_reply(interval=1e9),
        make_heartbeat_reply(interval=-1.0),
    ],
)
async def test_an_answer_that_does_not_match_the_schema_makes_the_registry_unavailable(
    answer: object,
) -> None:
    async with run_scripted_registry(answer) as registry:
        with pytest.raises(RegistryUnavailableError) as caught:
            await send_heartbeat(registry.url, timeout_seconds=1.0)
        assert len(caught.value.reason) < 400
        assert caught.value.reason.isprintable()


@pytest.mark.parametrize("error", [{}, {"extensions": None}, {"extensions": {"code": 7}}])
async def test_an_error_without_a_code_is_a_rejection(error: dict[str, object]) -> None:
    async with run_scripted_registry(
        make_reply({"errors": [{"message": "no\x1b[31m", **error}]})
    ) as registry:
        with pytest.raises(RequestRejectedError) as caught:
            await send_heartbeat(registry.url)
        assert (caught.value.code, caught.value.message) == ("", "no [31m")
        assert not caught.value.is_retryable


@pytest.mark.parametrize(
    ("facts", "seconds"),
    [
        ({"retryAfterSeconds": 2.5}, 2.5),
        ({"retryAfterSeconds": 1e12}, 3600.0),
        ({"retryAfterSeconds": -1}, 0.0),
        ({"retryAfterSeconds": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
async def test_the_retry_delay_requested_by_the_registry_is_limited(
    facts: dict[str, object], seconds: float
) -> None:
    async with run_scripted_registry(
        make_rejection("UNAVAILABLE", retryable=True, **facts)
    ) as registry:
        with pytest.raises(RequestRejectedError) as caught:
            await send_heartbeat(registry.url)
        assert caught.value.is_retryable
        assert caught.value.retry_after_seconds == seconds


async def test_a_graphql_error_with_an_http_error_status_keeps_its_code() -> None:
    body = make_rejection("UNAUTHENTICATED").partition(b"\r\n\r\n")[2]
    async with run_scripted_registry(make_reply(body, "401 Unauthorized")) as registry:
        with pytest.raises(RequestRejectedError) as caught:
            await send_heartbeat(registry.url)
        assert caught.value.code == "UNAUTHENTICATED"


async def test_the_retry_after_header_of_a_proxy_is_respected() -> None:
    answer = make_reply(b"slow down", "429 Too Many Requests", "Retry-After: 7\r\n")
    async with run_scripted_registry(answer) as registry:
        with pytest.raises(RequestRejectedError) as caught:
            await send_heartbeat(registry.url)
        assert caught.value.code == "RATE_LIMITED"
        assert caught.value.retry_after_seconds == 7.0
    answer = make_reply(b"away", "503 Service Unavailable", "Retry-After: Mon, 23 Nov 2026\r\n")
    async with run_scripted_registry(answer) as registry:
        with pytest.raises(RegistryUnavailableError) as unavailable:
            await send_heartbeat(registry.url)
        assert unavailable.value.retry_after_seconds == 0.0


async def test_requests_share_one_connection_until_a_failure_opens_a_new_one() -> None:
    async with (
        run_scripted_registry(
            make_heartbeat_reply(),
            make_rejection("INTERNAL"),
            make_heartbeat_reply(),
            None,
            make_heartbeat_reply(),
        ) as registry,
        aclosing(HttpTransport(registry.url, None)) as connection,
    ):

        async def request() -> None:
            await connection.execute(documents.RECORD_HEARTBEAT, {}, RecordHeartbeatData)

        await request()
        with pytest.raises(RequestRejectedError):
            await request()
        await request()
        assert registry.connections == 1
        with pytest.raises(RegistryUnavailableError):
            await request()
        await request()
        assert registry.connections == 2


async def test_the_token_is_sent_as_a_bearer_and_never_in_an_error() -> None:
    async with (
        run_scripted_registry(make_reply({"data": {"node": None}}), None) as registry,
        aclosing(HttpTransport(registry.url, "the-token")) as connection,
    ):
        data = await connection.execute(documents.NODE_STATUS, {"nodeId": "x"}, NodeStatusData)
        assert data.node is None
        assert "authorization: bearer the-token" in registry.headers[0].lower()
        with pytest.raises(RegistryUnavailableError) as caught:
            await connection.execute(documents.NODE_STATUS, {"nodeId": "x"}, NodeStatusData)
        assert "the-token" not in str(caught.value)


async def test_a_registration_without_an_answer_is_repeated_with_the_same_boot_id(
    tmp_path: Path,
) -> None:
    async with run_scripted_registry(None, HANG, make_registration_reply()) as registry:
        run = make_runner(registry, tmp_path, Time())
        async with aclosing(run.transport):
            await run.register()
        registrations = registry.inputs("registerNode")
        assert len({registration["bootId"] for registration in registrations}) == 1
        assert len(registrations) == 3
        assert not any("nodeId" in registration for registration in registrations)
    assert identity.read_node_id(tmp_path) == "node-1"


async def test_an_agent_restarted_before_the_answer_registers_with_the_same_boot_id(
    tmp_path: Path,
) -> None:
    async with run_scripted_registry(
        None, make_registration_reply(), make_registration_reply()
    ) as registry:
        first = make_runner(registry, tmp_path, Time(), patience=0.0)
        async with aclosing(first.transport):
            with pytest.raises(RegistryUnavailableError):
                await first.register()
        second = make_runner(registry, tmp_path, Time())
        async with aclosing(second.transport):
            await second.register()
        third = make_runner(registry, tmp_path, Time())
        async with aclosing(third.transport):
            await third.register()
        lost, repeated, restarted = registry.inputs("registerNode")
    assert repeated["bootId"] == lost["bootId"] != restarted["bootId"]
    assert restarted["nodeId"] == "node-1"
    assert restarted["replacesBootId"] == repeated["bootId"]
    assert "replacesBootId" not in repeated


async def test_the_node_id_is_on_disk_before_the_first_heartbeat(tmp_path: Path) -> None:
    async with run_scripted_registry(make_registration_reply(), HANG) as registry:
        run = make_runner(registry, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            await run.register()
            assert registry.inputs("recordHeartbeat") == []
            assert identity.read_node_id(tmp_path) == "node-1"
            assert identity.read_boot_id(tmp_path) == run.boot_id
            assert not (tmp_path / identity.PENDING).exists()


async def test_a_registration_answered_for_another_node_is_rejected(tmp_path: Path) -> None:
    (tmp_path / identity.NODE_ID).write_text("node-7\n")
    async with run_scripted_registry(make_registration_reply()) as registry:
        run = make_runner(registry, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            with pytest.raises(
                RegistryUnavailableError, match="is for node node-1 instead of node-7"
            ):
                await run.register()
    assert identity.read_node_id(tmp_path) == "node-7"


async def test_after_an_outage_only_the_newest_heartbeat_is_sent(tmp_path: Path) -> None:
    unavailable = make_rejection("UNAVAILABLE", retryable=True, retryAfterSeconds=3)
    async with run_scripted_registry(
        make_registration_reply(),
        make_heartbeat_reply(),
        None,
        unavailable,
        HANG,
        make_heartbeat_reply(),
    ) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        async with aclosing(run.transport):
            await run.register()
            await run.send_heartbeat()
            with capture_logs() as logs:
                await run.send_heartbeat()
        heartbeats = registry.inputs("recordHeartbeat")
    assert [heartbeat["sequence"] for heartbeat in heartbeats] == [1, 2, 3, 4, 5]
    assert {heartbeat["bootId"] for heartbeat in heartbeats} == {run.boot_id}
    assert time.now == 5.0 + (3.0 + 5.0) + 5.0  # half the interval, and the requested delay
    events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert events == ["request.failed", "request.rejected", "request.failed", "registry.recovered"]


async def test_attempts_become_rarer_during_a_long_outage(tmp_path: Path) -> None:
    async with run_scripted_registry(
        make_registration_reply(interval=1.0), *[None] * 12, make_heartbeat_reply(interval=1.0)
    ) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        async with aclosing(run.transport):
            await run.register()
            with capture_logs() as logs:
                await run.send_heartbeat()
    assert time.now == 1 + 2 + 4 + 8 + 16 + 32 + 6 * 60
    assert sum(entry["log_level"] == "warning" for entry in logs) == 1


async def test_a_taken_node_id_is_retried_and_logged_each_time(tmp_path: Path) -> None:
    taken = make_rejection(
        "NODE_ID_TAKEN", retryable=True, retryAfterSeconds=20, holderHostname="twin"
    )
    async with run_scripted_registry(taken, taken, taken, make_registration_reply()) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        async with aclosing(run.transport):
            with capture_logs() as logs:
                await run.register()
    assert time.now == (20 + 1) + (20 + 2) + (20 + 4)
    entries = [entry for entry in logs if entry.get("code") == "NODE_ID_TAKEN"]
    assert [entry["facts"]["holderHostname"] for entry in entries] == ["twin"] * 3


async def test_bootstrap_gives_up_when_its_patience_ends(
    tmp_path: Path,
) -> None:
    taken = make_rejection("NODE_ID_TAKEN", retryable=True, retryAfterSeconds=25)
    async with run_scripted_registry(*[taken] * 9) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time, patience=60.0)
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="NODE_ID_TAKEN"):
                await run.register()
        assert 25 <= time.now <= 60
        assert 2 <= len(registry.requests) <= 3


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "FORBIDDEN"])
async def test_a_rejected_token_stops_bootstrap_and_slows_the_retries_of_a_run(
    tmp_path: Path, code: str
) -> None:
    async with run_scripted_registry(
        make_rejection(code), make_rejection(code), make_registration_reply()
    ) as registry:
        time = Time()
        hasty = make_runner(registry, tmp_path, time, patience=60.0)
        async with aclosing(hasty.transport):
            with pytest.raises(RequestRejectedError, match=code):
                await hasty.register()
        assert time.now == 0
        patient = make_runner(registry, tmp_path, time)
        async with aclosing(patient.transport):
            await patient.register()
        assert time.now >= SLOW_RETRY_SECONDS


async def test_input_rejected_by_the_registry_stops_the_run(tmp_path: Path) -> None:
    async with run_scripted_registry(make_rejection("BAD_INPUT")) as registry:
        run = make_runner(registry, tmp_path, Time())
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="BAD_INPUT"):
                await run.run()


async def test_a_registry_that_forgets_each_registration_is_asked_at_its_own_interval(
    tmp_path: Path,
) -> None:
    answers = [
        make_registration_reply(),
        *[make_rejection("NODE_NOT_FOUND"), make_registration_reply()] * 3,
    ]
    async with run_scripted_registry(*answers, make_rejection("STALE_BOOT")) as registry:
        time = Time()
        run = make_runner(registry, tmp_path, time)
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="STALE_BOOT"):
                await run.run()
        assert time.now == 3 * 10.0
        assert (
            len({registration["bootId"] for registration in registry.inputs("registerNode")}) == 1
        )
        assert [heartbeat["sequence"] for heartbeat in registry.inputs("recordHeartbeat")] == [
            1,
            2,
            3,
            4,
        ]
