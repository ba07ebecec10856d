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
    """Real time plus the time that the machine slept; random delays are minimal."""

    slept: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: Clock().now() + self.slept, uniform=lambda low, _high: low)


@dataclass
class HeartbeatingNode:
    """A registered node and the transport over which it sends heartbeats."""

    transport: FallbackTransport
    sequence: int = 0
    paces: list[float] = field(default_factory=list)

    async def send(self) -> RecordHeartbeatPayload:
        self.sequence += 1
        heartbeat = {"nodeId": "a", "bootId": "boot-1", "sequence": self.sequence}
        async with asyncio.timeout(SECONDS):
            data = await self.transport.execute(
                documents.RECORD_HEARTBEAT, {"input": heartbeat}, RecordHeartbeatData
            )
        return data.record_heartbeat


@asynccontextmanager
async def open_node(
    url: str, time: Time | None = None, token: str | None = None, timeout_seconds: float = 5.0
) -> AsyncIterator[HeartbeatingNode]:
    paces: list[float] = []
    clock = (time or Time()).clock
    transport = FallbackTransport(
        url,
        token,
        TlsConfig(),
        clock=clock,
        on_pace=paces.append,
        timeout_seconds=timeout_seconds,
    )
    async with aclosing(transport):
        yield HeartbeatingNode(transport, paces=paces)


async def wait_until_lost() -> None:
    """Wait until the agent has noticed the loss of its websocket."""
    await wait_until(
        lambda: not any("_receive_data_loop" in repr(t.get_coro()) for t in asyncio.all_tasks())
    )


@dataclass
class UpgradeProxy:
    """A proxy that answers websocket upgrades itself and passes other requests on."""

    upstream: str
    answer: bytes | None
    """None: it accepts upgrades and never answers."""
    port: int = 0
    upgrades: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" not in head.lower() or self.answer == b"pass":
            host, _, port = self.upstream.removeprefix("http://").partition(":")
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
            upstream_writer.write(head)
            forward = Proxy(self.upstream).forward
            await asyncio.gather(forward(reader, upstream_writer), forward(upstream_reader, writer))
            return
        self.upgrades += 1
        if self.answer is None:
            await reader.read()
        else:
            writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def run_upgrade_proxy(upstream: str, answer: bytes | None) -> AsyncIterator[UpgradeProxy]:
    proxy = UpgradeProxy(upstream, answer)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1")
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()


async def test_all_heartbeats_use_one_websocket(server: LiveServer) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as proxy, open_node(proxy.url) as node:
        for _ in range(5):
            assert (await node.send()).status == "ONLINE"
        assert proxy.connection_count == 1
        assert "node_registry_connections 1.0" in (await server.http.get("/metrics")).text


async def test_runner_uses_the_configured_transport(server: LiveServer, tmp_path: Path) -> None:
    for transport_name, connections in (("websocket", 1), ("http", 0)):
        values = {"registry_url": server.url, "transport": transport_name}
        (tmp_path / transport_name).mkdir()
        async with open_runner(load_settings(values), tmp_path / transport_name) as run:
            await run.register()
            assert (await run.send_heartbeat()).status == "ONLINE"
            metrics = (await server.http.get("/metrics")).text
            assert f"node_registry_connections {connections}.0" in metrics
        async with asyncio.timeout(SECONDS):
            while "node_registry_connections 0.0" not in metrics:
                metrics = (await server.http.get("/metrics")).text


async def test_new_pace_is_received_between_two_heartbeats(start_server: StartServer) -> None:
    # The target rate is one heartbeat in five seconds for the fleet: five seconds per node.
    slow = {"heartbeat_min_interval_seconds": 1, "heartbeat_target_rate": 0.2}
    async with start_server(sweep_interval_seconds=3600, **slow) as server:
        for node_id in ("a", "b", "c", "d"):
            await register(server, node_id)
        await server.services.sweeper.sweep()
        async with open_node(server.graphql_url) as node:
            await node.send()
            for node_id in ("b", "c", "d"):
                await server.execute(DEREGISTER, input={"nodeId": node_id})
            await server.services.sweeper.sweep()
            await wait_until(lambda: node.paces == [20, 5])


async def test_cut_websocket_is_reopened_for_the_next_heartbeat(
    server: LiveServer,
) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as proxy, open_node(proxy.url) as node:
        await node.send()
        proxy.cut()
        await wait_until_lost()
        assert proxy.connection_count == 1  # a lost websocket is not reopened before it is needed
        await node.send()
        assert proxy.connection_count == 2


async def test_missing_response_fails_the_heartbeat_after_the_timeout(
    server: LiveServer,
) -> None:
    await register(server, "a")
    async with run_proxy(server.url) as proxy, open_node(proxy.url, timeout_seconds=1.0) as node:
        await node.send()
        proxy.stall()
        with pytest.raises(RegistryUnavailableError, match="no answer within 1 s"):
            await node.send()
        await node.send()
        assert proxy.connection_count == 2


async def test_dead_websocket_is_detected_before_the_next_heartbeat(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    await register(server, "a")
    async with run_proxy(server.url) as proxy, open_node(proxy.url) as node:
        await node.send()
        proxy.stall()
        await wait_until_lost()
        await node.send()
        assert proxy.connection_count == 2


async def test_machine_that_slept_opens_a_new_websocket(
    server: LiveServer,
) -> None:
    await register(server, "a")
    time = Time()
    async with run_proxy(server.url) as proxy, open_node(proxy.url, time) as node:
        await node.send()
        proxy.stall()
        time.slept += 3600
        await node.send()
        assert proxy.connection_count == 2


async def test_registry_that_closed_the_websocket_is_restarting_until_the_time_limit(
    start_server: StartServer,
) -> None:
    time = Time()
    async with start_server() as server:
        port = int(server.url.rpartition(":")[2])
        await register(server, "a")
        context = open_node(server.graphql_url, time)
        node = await context.__aenter__()
        await node.send()
    await wait_until_lost()
    with pytest.raises(RegistryRestartingError):
        await node.send()
    async with start_server(http_port=port):
        await node.send()
    await wait_until_lost()
    time.slept += RESTART_SECONDS
    with pytest.raises(RegistryUnavailableError) as caught:
        await node.send()
    assert not isinstance(caught.value, RegistryRestartingError)
    await context.__aexit__(None, None, None)


async def test_restart_is_logged_as_information_only(
    start_server: StartServer, tmp_path: Path
) -> None:
    fast: dict[str, Any] = {"heartbeat_min_interval_seconds": 0.05}
    clock = Clock(uniform=lambda _low, high: high / 100)
    with capture_logs() as logs:
        async with start_server(**fast) as server:
            port = int(server.url.rpartition(":")[2])
            schedule = Schedule(clock)
            fallback = FallbackTransport(
                server.graphql_url, None, TlsConfig(), clock=clock, on_pace=schedule.apply_pace
            )
            credentials = Credentials(tmp_path, None, clock.uniform)
            run = Runner(
                fallback, credentials, schedule, tmp_path, load_settings({}), "boot-1", clock=clock
            )
            task = asyncio.create_task(run.run())
            await wait_for_sequence(run, 3)
        await wait_until(lambda: any(entry["event"] == "registry.restarting" for entry in logs))
        async with start_server(http_port=port, **fast):
            await wait_for_sequence(run, run.sequence + 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await fallback.aclose()
    entries = [
        e for e in logs if e["event"].startswith(("registry.r", "request.failed", "websocket"))
    ]
    assert [entry["event"] for entry in entries if entry["log_level"] != "debug"] == [
        "registry.restarting",
        "registry.recovered",
    ]
    assert {entry["log_level"] for entry in entries} <= {"info", "debug"}


async def wait_for_sequence(run: Runner, sequence: int) -> None:
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
async def test_failed_upgrade_makes_heartbeats_use_http(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(transport, "OPEN_TIMEOUT_SECONDS", 0.3)
    await register(server, "a")
    async with run_upgrade_proxy(server.url, answer) as proxy, open_node(proxy.url) as node:
        with capture_logs() as logs:
            for _ in range(3):
                assert (await node.send()).status == "ONLINE"
    assert proxy.upgrades == 1
    [warning] = [entry for entry in logs if entry["event"] == "websocket.failed"]
    assert warning["log_level"] == "warning"
    assert reason in warning["reason"]


async def test_rejection_over_http_also_proves_that_websockets_are_broken(
    server: LiveServer,
) -> None:
    async with run_upgrade_proxy(server.url, BAD_REQUEST) as proxy, open_node(proxy.url) as node:
        for _ in range(2):
            with pytest.raises(RequestRejectedError, match="NODE_NOT_FOUND"):
                await node.send()
        assert proxy.upgrades == 1


async def test_websocket_is_retried_periodically_and_used_once_it_works(
    server: LiveServer,
) -> None:
    await register(server, "a")
    await wait_until_connected(server)  # it logs the connection
    time = Time()
    async with (
        run_upgrade_proxy(server.url, BAD_REQUEST) as proxy,
        open_node(proxy.url, time) as node,
    ):
        with capture_logs() as logs:
            await node.send()
            time.slept += HTTP_SECONDS
            await node.send()
            await node.send()
            assert proxy.upgrades == 2
            proxy.answer = b"pass"
            time.slept += HTTP_SECONDS
            await node.send()
        assert "node_registry_connections 1.0" in (await server.http.get("/metrics")).text
    events = [entry["event"] for entry in logs if entry["log_level"] in {"info", "warning"}]
    assert events == ["websocket.failed", "websocket.recovered"]


async def test_unreachable_registry_does_not_count_as_broken_websockets(server: LiveServer) -> None:
    await register(server, "a")
    async with run_upgrade_proxy("http://127.0.0.1:9", None) as proxy:
        proxy.answer = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        async with open_node(proxy.url) as node:
            with capture_logs() as logs:
                for _ in range(2):
                    with pytest.raises(RegistryUnavailableError):
                        await node.send()
            assert proxy.upgrades == 2
    assert not [entry for entry in logs if entry["event"] == "websocket.failed"]


async def test_registry_at_its_connection_limit_gets_heartbeats_over_http(
    start_server: StartServer,
) -> None:
    async with start_server(max_connections=1) as server:
        await register(server, "a")
        async with connect(server.websocket_url), open_node(server.graphql_url) as node:
            assert (await node.send()).status == "ONLINE"


async def test_heartbeats_are_accepted_without_a_pace_subscription(
    start_server: StartServer,
) -> None:
    async with start_server(max_subscriptions_per_caller=1) as server:
        await register(server, "a")
        async with connect(server.websocket_url) as other:
            await other.subscribe("1", CHANGES, after="0")
            await other.receive()
            async with open_node(server.graphql_url) as node:
                for _ in range(3):
                    await node.send()
                assert node.paces == []


@pytest.mark.parametrize(
    ("status", "code", "rejection"),
    [
        (401, None, "UNAUTHENTICATED"),
        (403, None, "FORBIDDEN"),
        (429, None, "RATE_LIMITED"),
        (None, 4401, "UNAUTHENTICATED"),
        (None, 4403, "FORBIDDEN"),
    ],
)
async def test_rejected_credentials_are_not_retried_over_http(
    status: int | None, code: int | None, rejection: str
) -> None:
    tokens = []

    def reject_handshake(connection: ServerConnection, request: Request) -> Response | None:
        tokens.append(request.headers.get("Authorization"))
        return None if status is None else connection.respond(status, "no")

    async def close(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(code or 1000)

    protocol = [Subprotocol(websocket.PROTOCOL)]
    async with serve(
        close, "127.0.0.1", 0, subprotocols=protocol, process_request=reject_handshake
    ) as remote:
        url = f"http://127.0.0.1:{next(iter(remote.sockets)).getsockname()[1]}/graphql"
        async with open_node(url, token="the-token") as node:
            with pytest.raises(RequestRejectedError) as caught:
                await node.send()
    assert caught.value.code == rejection
    assert "the-token" not in str(caught.value)
    assert tokens == ["Bearer the-token"]


async def test_closing_the_transport_leaves_no_socket_and_no_task(server: LiveServer) -> None:
    await register(server, "a")
    async with open_node(server.graphql_url) as node:
        await node.send()
    await wait_until_lost()
    await wait_until(lambda: not server.services.sweeper.pace.follower_count)
    assert not [t for t in asyncio.all_tasks() if "_follow_pace" in repr(t.get_coro())]
