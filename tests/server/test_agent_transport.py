"""Heartbeats over one websocket, and over HTTP where websockets are broken; real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from agent import documents, transport, websocket
from agent.cli import open_runner
from agent.credentials import Credentials
from agent.errors import RegistryRestartingError, RegistryUnavailableError, RequestRejectedError
from agent.pace import Clock, Schedule
from agent.replies import RecordHeartbeatData, RecordHeartbeatPayload
from agent.runner import Runner
from agent.settings import load_settings
from agent.tls import TlsConfig
from agent.transport import HTTP_SECONDS, RESTART_SECONDS, FallbackTransport
from tests.support.api import CHANGES, DEREGISTER, register, wait_until_connected
from tests.support.live_server import LiveServer, StartServer
from tests.support.tcp_proxy import Proxy, run_proxy
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until

SECONDS = 10


@dataclass
class Time:
    """Goes on by itself; a machine that sleeps adds to it, and chance says the least."""

    slept: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: Clock().now() + self.slept, uniform=lambda low, _high: low)


@dataclass
class Beating:
    """A node that is registered, and the link over which it sends heartbeats."""

    link: FallbackTransport
    sequence: int = 0
    paces: list[float] = field(default_factory=list)

    async def beat(self) -> RecordHeartbeatPayload:
        self.sequence += 1
        beat = {"nodeId": "a", "bootId": "boot-1", "sequence": self.sequence}
        async with asyncio.timeout(SECONDS):
            data = await self.link.execute(
                documents.RECORD_HEARTBEAT, {"input": beat}, RecordHeartbeatData
            )
        return data.record_heartbeat


@asynccontextmanager
async def beating(
    url: str, time: Time | None = None, token: str | None = None, timeout_seconds: float = 5.0
) -> AsyncIterator[Beating]:
    paces: list[float] = []
    clock = (time or Time()).clock
    over = FallbackTransport(
        url,
        token,
        TlsConfig(),
        clock=clock,
        on_pace=paces.append,
        timeout_seconds=timeout_seconds,
    )
    async with aclosing(over):
        yield Beating(over, paces=paces)


async def wait_until_lost() -> None:
    """Until the agent knows that its websocket is gone."""
    await wait_until(
        lambda: not any("_receive_data_loop" in repr(t.get_coro()) for t in asyncio.all_tasks())
    )


@dataclass
class Spoiler:
    """A proxy that answers requests for a websocket by itself, and lets the others through."""

    upstream: str
    answer: bytes | None
    """None: it takes them, and is silent."""
    port: int = 0
    upgrades: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" not in head.lower() or self.answer == b"pass":
            host, _, port = self.upstream.removeprefix("http://").partition(":")
            there, back = await asyncio.open_connection(host, int(port))
            back.write(head)
            carry = Proxy(self.upstream).carry
            await asyncio.gather(carry(reader, back), carry(there, writer))
            return
        self.upgrades += 1
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def spoiler(upstream: str, answer: bytes | None) -> AsyncIterator[Spoiler]:
    between = Spoiler(upstream, answer)
    listening = await asyncio.start_server(between.serve, "127.0.0.1")
    between.port = listening.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        listening.close()


async def test_all_heartbeats_go_over_one_websocket(server: LiveServer) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as between, beating(between.url) as node:
        for _ in range(5):
            assert (await node.beat()).status == "ONLINE"
        assert between.taken == 1
        assert "node_registry_connections 1.0" in (await server.http.get("/metrics")).text


async def test_a_run_registers_and_beats_by_the_settings_it_is_given(
    server: LiveServer, tmp_path: Path
) -> None:
    for transport_name, connections in (("websocket", 1), ("http", 0)):
        told = {"registry_url": server.url, "transport": transport_name}
        (tmp_path / transport_name).mkdir()
        async with open_runner(load_settings(told), tmp_path / transport_name) as run:
            await run.register()
            assert (await run.send_heartbeat()).status == "ONLINE"
            metrics = (await server.http.get("/metrics")).text
            assert f"node_registry_connections {connections}.0" in metrics
        async with asyncio.timeout(SECONDS):
            while "node_registry_connections 0.0" not in metrics:
                metrics = (await server.http.get("/metrics")).text


async def test_a_faster_pace_is_heard_between_two_heartbeats(start_server: StartServer) -> None:
    # One heartbeat in five seconds, of all nodes together: so the pace is five seconds a node.
    slow = {"heartbeat_min_interval_seconds": 1, "heartbeat_target_rate": 0.2}
    async with start_server(sweep_interval_seconds=3600, **slow) as server:
        for node_id in ("a", "b", "c", "d"):
            await register(server, node_id)
        await server.services.sweeper.sweep()
        async with beating(server.graphql_url) as node:
            await node.beat()
            for node_id in ("b", "c", "d"):
                await server.execute(DEREGISTER, input={"nodeId": node_id})
            await server.services.sweeper.sweep()
            await wait_until(lambda: node.paces == [20, 5])


async def test_a_websocket_that_was_cut_is_opened_anew_for_the_next_heartbeat(
    server: LiveServer,
) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as between, beating(between.url) as node:
        await node.beat()
        between.cut()
        await wait_until_lost()
        assert between.taken == 1  # all that lost theirs at once do not come back at once
        await node.beat()
        assert between.taken == 2


async def test_an_answer_that_never_comes_is_not_waited_for_longer_than_the_limit(
    server: LiveServer,
) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as between, beating(between.url, timeout_seconds=1.0) as node:
        await node.beat()
        between.starve()
        with pytest.raises(RegistryUnavailableError, match="no answer within 1 s"):
            await node.beat()
        await node.beat()
        assert between.taken == 2


async def test_a_dead_websocket_is_found_before_the_next_heartbeat(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    await register(server, "a")
    async with run_proxy(server.url) as between, beating(between.url) as node:
        await node.beat()
        between.starve()
        await wait_until_lost()
        await node.beat()
        assert between.taken == 2


async def test_a_machine_that_slept_does_not_try_the_websocket_of_before(
    server: LiveServer,
) -> None:
    await register(server, "a")
    time = Time()
    async with run_proxy(server.url) as between, beating(between.url, time) as node:
        await node.beat()
        between.starve()
        time.slept += 3600
        await node.beat()
        assert between.taken == 2


async def test_a_registry_that_said_goodbye_is_restarting_and_not_away(
    start_server: StartServer,
) -> None:
    time = Time()
    async with start_server() as server:
        port = int(server.url.rpartition(":")[2])
        await register(server, "a")
        over = beating(server.graphql_url, time)
        node = await over.__aenter__()
        await node.beat()
    await wait_until_lost()
    with pytest.raises(RegistryRestartingError):
        await node.beat()
    async with start_server(http_port=port):
        await node.beat()
    await wait_until_lost()
    time.slept += RESTART_SECONDS
    with pytest.raises(RegistryUnavailableError) as caught:
        await node.beat()
    assert not isinstance(caught.value, RegistryRestartingError)
    await over.__aexit__(None, None, None)


async def test_a_restart_is_no_news_that_anyone_would_take_for_a_failure(
    start_server: StartServer, tmp_path: Path
) -> None:
    fast: dict[str, Any] = {"heartbeat_min_interval_seconds": 0.05}
    clock = Clock(uniform=lambda _low, high: high / 100)
    with capture_logs() as logs:
        async with start_server(**fast) as server:
            port = int(server.url.rpartition(":")[2])
            schedule = Schedule(clock)
            over = FallbackTransport(
                server.graphql_url, None, TlsConfig(), clock=clock, on_pace=schedule.apply_pace
            )
            shown = Credentials(tmp_path, None, clock.uniform)
            run = Runner(over, shown, schedule, tmp_path, load_settings({}), "boot-1", clock=clock)
            task = asyncio.create_task(run.run())
            await beats(run, 3)
        await wait_until(lambda: any(entry["event"] == "registry.restarting" for entry in logs))
        async with start_server(http_port=port, **fast):
            await beats(run, run.sequence + 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await over.aclose()
    said = [e for e in logs if e["event"].startswith(("registry.r", "request.failed", "websocket"))]
    assert [entry["event"] for entry in said if entry["log_level"] != "debug"] == [
        "registry.restarting",
        "registry.recovered",
    ]
    assert {entry["log_level"] for entry in said} <= {"info", "debug"}


async def beats(run: Runner, sequence: int) -> None:
    await wait_until(lambda: run.sequence >= sequence)


BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (BAD_REQUEST, "HTTP 400"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP 200"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "missing Connection header"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "HTTP response"),
        (b"", "HTTP response"),
        (None, "no answer within 0.3 s"),
    ],
)
async def test_where_websockets_are_broken_heartbeats_go_over_http(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(transport, "OPEN_TIMEOUT_SECONDS", 0.3)
    await register(server, "a")
    async with spoiler(server.url, answer) as between, beating(between.url) as node:
        with capture_logs() as logs:
            for _ in range(3):
                assert (await node.beat()).status == "ONLINE"
    assert between.upgrades == 1
    [warning] = [entry for entry in logs if entry["event"] == "websocket.failed"]
    assert warning["log_level"] == "warning"
    assert reason in warning["reason"]


async def test_a_refusal_over_http_tells_too_that_websockets_are_broken(
    server: LiveServer,
) -> None:
    async with spoiler(server.url, BAD_REQUEST) as between, beating(between.url) as node:
        for _ in range(2):
            with pytest.raises(RequestRejectedError, match="NODE_NOT_FOUND"):
                await node.beat()
        assert between.upgrades == 1


async def test_the_websocket_is_tried_again_now_and_then_and_used_when_it_works(
    server: LiveServer,
) -> None:
    await register(server, "a")
    await wait_until_connected(server)  # which it logs
    time = Time()
    async with spoiler(server.url, BAD_REQUEST) as between, beating(between.url, time) as node:
        with capture_logs() as logs:
            await node.beat()
            time.slept += HTTP_SECONDS
            await node.beat()
            await node.beat()
            assert between.upgrades == 2
            between.answer = b"pass"
            time.slept += HTTP_SECONDS
            await node.beat()
        assert "node_registry_connections 1.0" in (await server.http.get("/metrics")).text
    told = [entry["event"] for entry in logs if entry["log_level"] in {"info", "warning"}]
    assert told == ["websocket.failed", "websocket.recovered"]


async def test_nobody_is_called_broken_while_the_registry_is_away(server: LiveServer) -> None:
    await register(server, "a")
    async with spoiler("http://127.0.0.1:9", None) as between:
        between.answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        async with beating(between.url) as node:
            with capture_logs() as logs:
                for _ in range(2):
                    with pytest.raises(RegistryUnavailableError):
                        await node.beat()
            assert between.upgrades == 2
    assert not [entry for entry in logs if entry["event"] == "websocket.failed"]


async def test_a_registry_that_has_no_room_for_websockets_is_asked_over_http(
    start_server: StartServer,
) -> None:
    async with start_server(max_connections=1) as server:
        await register(server, "a")
        async with connect(server.websocket_url), beating(server.graphql_url) as node:
            assert (await node.beat()).status == "ONLINE"


async def test_a_registry_that_tells_no_pace_still_takes_heartbeats(
    start_server: StartServer,
) -> None:
    async with start_server(max_subscriptions_per_caller=1) as server:
        await register(server, "a")
        async with connect(server.websocket_url) as other:
            await other.subscribe("1", CHANGES, after="0")
            await other.receive()
            async with beating(server.graphql_url) as node:
                for _ in range(3):
                    await node.beat()
                assert node.paces == []


@pytest.mark.parametrize(
    ("status", "code", "refusal"),
    [
        (401, None, "UNAUTHENTICATED"),
        (403, None, "FORBIDDEN"),
        (429, None, "RATE_LIMITED"),
        (None, 4401, "UNAUTHENTICATED"),
        (None, 4403, "FORBIDDEN"),
    ],
)
async def test_a_refusal_is_none_that_http_could_avoid(
    status: int | None, code: int | None, refusal: str
) -> None:
    tokens = []

    def shake_hands(connection: ServerConnection, request: Request) -> Response | None:
        tokens.append(request.headers.get("Authorization"))
        return None if status is None else connection.respond(status, "no")

    async def close(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(code or 1000)

    protocol = [Subprotocol(websocket.PROTOCOL)]
    async with serve(
        close, "127.0.0.1", 0, subprotocols=protocol, process_request=shake_hands
    ) as remote:
        url = f"http://127.0.0.1:{next(iter(remote.sockets)).getsockname()[1]}/graphql"
        async with beating(url, token="the-token") as node:
            with pytest.raises(RequestRejectedError) as caught:
                await node.beat()
    assert caught.value.code == refusal
    assert "the-token" not in str(caught.value)
    assert tokens == ["Bearer the-token"]


async def test_closing_leaves_neither_a_socket_nor_a_task(server: LiveServer) -> None:
    await register(server, "a")
    async with beating(server.graphql_url) as node:
        await node.beat()
    await wait_until_lost()
    await wait_until(lambda: not server.services.sweeper.pace.follower_count)
    assert not [t for t in asyncio.all_tasks() if "_follow_pace" in repr(t.get_coro())]
