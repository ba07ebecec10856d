"""The client that routers import: it answers even while the registry is unreachable."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from agent.breaker import MAX_FAILURES
from agent.errors import RegistryUnavailableError, RequestRejectedError
from agent.replies import Bookmark
from agent.router_client import RegistryClient
from tests.support.api import DEREGISTER, register
from tests.support.fake_time import Time
from tests.support.live_server import LiveServer
from tests.support.tcp_proxy import Proxy, run_proxy


@pytest.fixture
async def proxy(server: LiveServer) -> AsyncIterator[Proxy]:
    async with run_proxy(server.url) as proxy:
        yield proxy


async def test_nodes_are_found_by_id_by_role_and_by_filter(server: LiveServer) -> None:
    await register(server, "a", labels=["gpu"], capabilities={"models": ["m"]})
    await register(server, "b", role="BACKUP")
    async with RegistryClient(server.url) as client:
        everything = await client.get_nodes()
        assert [node.node_id for node in everything.value][:2] == ["a", "b"]
        assert (everything.is_stale, everything.age_seconds) == (False, 0.0)
        assert [n.node_id for n in (await client.get_nodes_by_role("backup")).value] == ["b"]
        gpu_nodes = await client.get_nodes(labels={"all": ["gpu"]})
        assert [node.capabilities for node in gpu_nodes.value] == [{"models": ["m"]}]
        single_node = (await client.get_node("a")).value
        assert single_node is not None
        assert single_node.status == "ONLINE"
        assert (await client.get_node("nobody")).value is None


async def test_all_pages_are_read(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.router_client.PAGE_SIZE", 2)
    for number in range(5):
        await register(server, f"n{number}")
    async with RegistryClient(server.url) as client:
        everything = await client.get_nodes(search="n")
    assert (
        len([node for node in everything.value if node.node_id in {f"n{i}" for i in range(5)}]) == 5
    )


async def test_available_nodes_come_with_scores_and_reasons(server: LiveServer) -> None:
    await register(server, "a", labels=["gpu"])
    async with RegistryClient(server.url) as client:
        answer = await client.get_available_nodes({"labels": {"all": ["gpu"]}}, limit=1)
    [best] = answer.value.candidates
    assert (best.node.node_id, best.score) == ("a", 0)
    assert "is OFFLINE" in answer.value.excluded[0].reasons


async def test_client_follows_status_changes(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        events = client.follow_status_changes()
        assert await anext(events) == Bookmark(revision=2)
        await events.aclose()


async def test_rejected_request_is_never_answered_from_the_cache(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        for _ in range(MAX_FAILURES + 1):
            with pytest.raises(RequestRejectedError) as rejected:
                await client.get_available_nodes({"maxCpuPercent": -1})
            assert rejected.value.facts["field"] == "require.maxCpuPercent"
        assert not (await client.get_nodes()).is_stale


async def test_unreachable_registry_is_replaced_by_the_last_good_reply_until_it_expires(
    server: LiveServer,
) -> None:
    time_ = Time(1000.0)
    async with (
        run_proxy(server.url) as proxy,
        RegistryClient(proxy.url, stale_seconds=60, clock=time_.clock) as client,
    ):
        fresh = await client.get_node("node-1-hetzner-gex44")
        proxy.upstream = "http://127.0.0.1:9"
        proxy.cut()
        time_.now += 10
        stale = await client.get_node("node-1-hetzner-gex44")
        assert stale.value == fresh.value
        assert stale.is_stale
        assert 10 <= stale.age_seconds < 12
        with pytest.raises(RegistryUnavailableError):
            await client.get_node("another")
        time_.now += 60
        with pytest.raises(RegistryUnavailableError):
            await client.get_node("node-1-hetzner-gex44")


async def test_open_circuit_breaker_answers_immediately_and_probes_one_request_at_a_time(
    server: LiveServer,
) -> None:
    time_ = Time(1000.0)
    async with (
        run_proxy(server.url) as proxy,
        RegistryClient(proxy.url, clock=time_.clock) as client,
    ):
        await client.get_nodes()
        upstream, proxy.upstream = proxy.upstream, "http://127.0.0.1:9"
        proxy.cut()
        with capture_logs() as events:
            for _ in range(MAX_FAILURES):
                assert (await client.get_nodes()).is_stale
            taken = proxy.connection_count
            for _ in range(100):
                assert (await client.get_nodes()).is_stale
            assert proxy.connection_count == taken
            time_.now += 10
            assert (await client.get_nodes()).is_stale
            assert proxy.connection_count == taken + 1
            proxy.upstream = upstream
            time_.now += 10
            assert not (await client.get_nodes()).is_stale
        assert [
            event["event"] for event in events if event["event"].startswith("circuit_breaker.")
        ] == [
            "circuit_breaker.opened",
            "circuit_breaker.closed",
        ]


async def test_identical_concurrent_requests_share_one(server: LiveServer, proxy: Proxy) -> None:
    await register(server, "a")
    async with RegistryClient(proxy.url) as client:
        answers = await asyncio.gather(*(client.get_node("a") for _ in range(200)))
        assert proxy.connection_count == 1
        assert all(answer is answers[0] for answer in answers)
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        assert (await client.get_node("a")).value is None


async def test_unresponsive_registry_delays_a_request_by_at_most_the_timeout(
    proxy: Proxy,
) -> None:
    async with RegistryClient(proxy.url, timeout_seconds=1.0) as client:
        fresh = await client.get_nodes()
        proxy.stall()
        began = time.monotonic()
        stale = await client.get_nodes()
        assert time.monotonic() - began < 5
        assert stale.value == fresh.value
        assert stale.reason


async def test_cancelled_waiter_does_not_disturb_the_others(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        cancelled, remaining = [asyncio.create_task(client.get_nodes()) for _ in range(2)]
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await remaining).value
