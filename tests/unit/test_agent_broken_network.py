"""The remote end misbehaves over real sockets."""

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
    make_recorded,
    make_refusal,
    make_registered,
    make_reply,
    make_runner,
    run_scripted_registry,
)


async def heartbeat(url: str, timeout_seconds: float = 5.0) -> RecordHeartbeatData:
    async with aclosing(HttpTransport(url, None, timeout_seconds=timeout_seconds)) as connection:
        return await connection.execute(documents.RECORD_HEARTBEAT, {}, RecordHeartbeatData)


async def test_refused_connection_means_that_the_registry_is_away() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/graphql"
        with pytest.raises(RegistryUnavailableError):
            await heartbeat(url)


async def test_registry_that_accepts_and_hangs_is_left_after_the_time_limit() -> None:
    async with run_scripted_registry(HANG) as end:
        began = asyncio.get_running_loop().time()
        with pytest.raises(RegistryUnavailableError, match=r"no answer within 0\.2 s"):
            await heartbeat(end.url, timeout_seconds=0.2)
        assert asyncio.get_running_loop().time() - began < 2


async def test_registry_that_drips_its_answer_is_left_after_the_time_limit() -> None:
    async with run_scripted_registry(DRIP) as end:
        with pytest.raises(RegistryUnavailableError, match="no answer within"):
            await heartbeat(end.url, timeout_seconds=0.3)


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
        make_recorded(interval=0.0),
        make_recorded(interval=float("nan")),
        make_recorded(interval=float("inf")),
        make_recorded(interval=1e9),
        make_recorded(interval=-1.0),
    ],
)
async def test_answer_that_is_not_of_the_schema_means_that_the_registry_is_away(
    answer: object,
) -> None:
    async with run_scripted_registry(answer) as end:
        with pytest.raises(RegistryUnavailableError) as caught:
            await heartbeat(end.url, timeout_seconds=1.0)
        assert len(caught.value.reason) < 400
        assert caught.value.reason.isprintable()


@pytest.mark.parametrize("error", [{}, {"extensions": None}, {"extensions": {"code": 7}}])
async def test_error_without_a_code_is_still_a_refusal(error: dict[str, object]) -> None:
    async with run_scripted_registry(
        make_reply({"errors": [{"message": "no\x1b[31m", **error}]})
    ) as end:
        with pytest.raises(RequestRejectedError) as caught:
            await heartbeat(end.url)
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
async def test_wait_that_the_registry_asks_for_is_bounded(
    facts: dict[str, object], seconds: float
) -> None:
    async with run_scripted_registry(make_refusal("UNAVAILABLE", retryable=True, **facts)) as end:
        with pytest.raises(RequestRejectedError) as caught:
            await heartbeat(end.url)
        assert caught.value.is_retryable
        assert caught.value.retry_after_seconds == seconds


async def test_graphql_error_with_an_http_error_status_keeps_its_code() -> None:
    body = make_refusal("UNAUTHENTICATED").partition(b"\r\n\r\n")[2]
    async with run_scripted_registry(make_reply(body, "401 Unauthorized")) as end:
        with pytest.raises(RequestRejectedError) as caught:
            await heartbeat(end.url)
        assert caught.value.code == "UNAUTHENTICATED"


async def test_proxy_that_limits_the_rate_is_given_its_time() -> None:
    answer = make_reply(b"slow down", "429 Too Many Requests", "Retry-After: 7\r\n")
    async with run_scripted_registry(answer) as end:
        with pytest.raises(RequestRejectedError) as caught:
            await heartbeat(end.url)
        assert caught.value.code == "RATE_LIMITED"
        assert caught.value.retry_after_seconds == 7.0
    answer = make_reply(b"away", "503 Service Unavailable", "Retry-After: Mon, 23 Nov 2026\r\n")
    async with run_scripted_registry(answer) as end:
        with pytest.raises(RegistryUnavailableError) as away:
            await heartbeat(end.url)
        assert away.value.retry_after_seconds == 0.0


async def test_one_connection_carries_many_requests_and_a_fresh_one_follows_a_failure() -> None:
    async with (
        run_scripted_registry(
            make_recorded(), make_refusal("INTERNAL"), make_recorded(), None, make_recorded()
        ) as end,
        aclosing(HttpTransport(end.url, None)) as connection,
    ):

        async def ask() -> None:
            await connection.execute(documents.RECORD_HEARTBEAT, {}, RecordHeartbeatData)

        await ask()
        with pytest.raises(RequestRejectedError):
            await ask()
        await ask()
        assert end.connections == 1
        with pytest.raises(RegistryUnavailableError):
            await ask()
        await ask()
        assert end.connections == 2


async def test_token_travels_as_a_bearer_and_never_in_an_error() -> None:
    async with (
        run_scripted_registry(make_reply({"data": {"node": None}}), None) as end,
        aclosing(HttpTransport(end.url, "the-token")) as connection,
    ):
        data = await connection.execute(documents.NODE_STATUS, {"nodeId": "x"}, NodeStatusData)
        assert data.node is None
        assert "authorization: bearer the-token" in end.headers[0].lower()
        with pytest.raises(RegistryUnavailableError) as caught:
            await connection.execute(documents.NODE_STATUS, {"nodeId": "x"}, NodeStatusData)
        assert "the-token" not in str(caught.value)


async def test_registration_whose_answer_was_lost_is_repeated_under_the_same_boot_id(
    tmp_path: Path,
) -> None:
    async with run_scripted_registry(None, HANG, make_registered()) as end:
        run = make_runner(end, tmp_path, Time())
        async with aclosing(run.transport):
            await run.register()
        sent = end.inputs("registerNode")
        assert len({registration["bootId"] for registration in sent}) == 1
        assert len(sent) == 3
        assert not any("nodeId" in registration for registration in sent)
    assert identity.read_node_id(tmp_path) == "node-1"


async def test_agent_that_died_before_the_answer_asks_again_under_the_same_boot_id(
    tmp_path: Path,
) -> None:
    async with run_scripted_registry(None, make_registered(), make_registered()) as end:
        first = make_runner(end, tmp_path, Time(), patience=0.0)
        async with aclosing(first.transport):
            with pytest.raises(RegistryUnavailableError):
                await first.register()
        second = make_runner(end, tmp_path, Time())
        async with aclosing(second.transport):
            await second.register()
        third = make_runner(end, tmp_path, Time())
        async with aclosing(third.transport):
            await third.register()
        lost, repeated, restarted = end.inputs("registerNode")
    assert repeated["bootId"] == lost["bootId"] != restarted["bootId"]
    assert restarted["nodeId"] == "node-1"
    assert restarted["replacesBootId"] == repeated["bootId"]
    assert "replacesBootId" not in repeated


async def test_node_id_is_on_disk_before_the_first_heartbeat(tmp_path: Path) -> None:
    async with run_scripted_registry(make_registered(), HANG) as end:
        run = make_runner(end, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            await run.register()
            assert end.inputs("recordHeartbeat") == []
            assert identity.read_node_id(tmp_path) == "node-1"
            assert identity.read_boot_id(tmp_path) == run.boot_id
            assert not (tmp_path / identity.PENDING).exists()


async def test_registry_that_answers_with_another_node_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / identity.NODE_ID).write_text("node-7\n")
    async with run_scripted_registry(make_registered()) as end:
        run = make_runner(end, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            with pytest.raises(
                RegistryUnavailableError, match="is for node node-1 instead of node-7"
            ):
                await run.register()
    assert identity.read_node_id(tmp_path) == "node-7"


async def test_outage_leaves_one_heartbeat_to_send_and_it_is_the_newest(tmp_path: Path) -> None:
    unavailable = make_refusal("UNAVAILABLE", retryable=True, retryAfterSeconds=3)
    async with run_scripted_registry(
        make_registered(), make_recorded(), None, unavailable, HANG, make_recorded()
    ) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        async with aclosing(run.transport):
            await run.register()
            await run.send_heartbeat()
            with capture_logs() as logs:
                await run.send_heartbeat()
        beats = end.inputs("recordHeartbeat")
    assert [beat["sequence"] for beat in beats] == [1, 2, 3, 4, 5]
    assert {beat["bootId"] for beat in beats} == {run.boot_id}
    assert time.now == 5.0 + (3.0 + 5.0) + 5.0  # half the interval, and what was asked for
    events = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert events == ["request.failed", "request.rejected", "request.failed", "registry.recovered"]


async def test_long_outage_is_met_with_ever_fewer_attempts(tmp_path: Path) -> None:
    async with run_scripted_registry(
        make_registered(interval=1.0), *[None] * 12, make_recorded(interval=1.0)
    ) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        async with aclosing(run.transport):
            await run.register()
            with capture_logs() as logs:
                await run.send_heartbeat()
    assert time.now == 1 + 2 + 4 + 8 + 16 + 32 + 6 * 60
    assert sum(entry["log_level"] == "warning" for entry in logs) == 1


async def test_taken_node_id_is_waited_for_and_said_each_time(tmp_path: Path) -> None:
    taken = make_refusal(
        "NODE_ID_TAKEN", retryable=True, retryAfterSeconds=20, holderHostname="twin"
    )
    async with run_scripted_registry(taken, taken, taken, make_registered()) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        async with aclosing(run.transport):
            with capture_logs() as logs:
                await run.register()
    assert time.now == (20 + 1) + (20 + 2) + (20 + 4)
    told = [entry for entry in logs if entry.get("code") == "NODE_ID_TAKEN"]
    assert [entry["facts"]["holderHostname"] for entry in told] == ["twin"] * 3


async def test_bootstrap_gives_up_when_its_patience_ends(tmp_path: Path) -> None:
    taken = make_refusal("NODE_ID_TAKEN", retryable=True, retryAfterSeconds=25)
    async with run_scripted_registry(*[taken] * 9) as end:
        time = Time()
        run = make_runner(end, tmp_path, time, patience=60.0)
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="NODE_ID_TAKEN"):
                await run.register()
        assert 25 <= time.now <= 60
        assert 2 <= len(end.requests) <= 3


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "FORBIDDEN"])
async def test_refused_token_ends_bootstrap_and_slows_a_run(tmp_path: Path, code: str) -> None:
    async with run_scripted_registry(
        make_refusal(code), make_refusal(code), make_registered()
    ) as end:
        time = Time()
        hasty = make_runner(end, tmp_path, time, patience=60.0)
        async with aclosing(hasty.transport):
            with pytest.raises(RequestRejectedError, match=code):
                await hasty.register()
        assert time.now == 0
        patient = make_runner(end, tmp_path, time)
        async with aclosing(patient.transport):
            await patient.register()
        assert time.now >= SLOW_RETRY_SECONDS


async def test_input_that_the_registry_finds_bad_ends_the_run(tmp_path: Path) -> None:
    async with run_scripted_registry(make_refusal("BAD_INPUT")) as end:
        run = make_runner(end, tmp_path, Time())
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="BAD_INPUT"):
                await run.run()


async def test_registry_that_forgets_each_registration_is_asked_at_its_own_pace(
    tmp_path: Path,
) -> None:
    forgetful = [make_registered(), *[make_refusal("NODE_NOT_FOUND"), make_registered()] * 3]
    async with run_scripted_registry(*forgetful, make_refusal("STALE_BOOT")) as end:
        time = Time()
        run = make_runner(end, tmp_path, time)
        async with aclosing(run.transport):
            with pytest.raises(RequestRejectedError, match="STALE_BOOT"):
                await run.run()
        assert time.now == 3 * 10.0
        assert len({registration["bootId"] for registration in end.inputs("registerNode")}) == 1
        assert [beat["sequence"] for beat in end.inputs("recordHeartbeat")] == [1, 2, 3, 4]
