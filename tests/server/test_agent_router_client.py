"""The client that routers import: it answers, whatever becomes of the registry."""

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
async def between(server: LiveServer) -> AsyncIterator[Proxy]:
    async with run_proxy(server.url) as between:
        yield between


async def test_nodes_are_asked_for_one_by_one_by_role_and_by_filter(server: LiveServer) -> None:
    await register(server, "a", labels=["gpu"], capabilities={"models": ["m"]})
    await register(server, "b", role="BACKUP")
    async with RegistryClient(server.url) as client:
        every = await client.get_nodes()
        assert [node.node_id for node in every.value][:2] == ["a", "b"]
        assert (every.is_stale, every.age_seconds) == (False, 0.0)
        assert [n.node_id for n in (await client.get_nodes_by_role("backup")).value] == ["b"]
        gpus = await client.get_nodes(labels={"all": ["gpu"]})
        assert [node.capabilities for node in gpus.value] == [{"models": ["m"]}]
        one = (await client.get_node("a")).value
        assert one is not None
        assert one.status == "ONLINE"
        assert (await client.get_node("nobody")).value is None


async def test_all_pages_are_read(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.router_client.PAGE_SIZE", 2)
    for number in range(5):
        await register(server, f"n{number}")
    async with RegistryClient(server.url) as client:
        found = await client.get_nodes(search="n")
    assert len([node for node in found.value if node.node_id in {f"n{i}" for i in range(5)}]) == 5


async def test_available_nodes_come_with_scores_and_reasons(server: LiveServer) -> None:
    await register(server, "a", labels=["gpu"])
    async with RegistryClient(server.url) as client:
        answer = await client.get_available_nodes({"labels": {"all": ["gpu"]}}, limit=1)
    [best] = answer.value.candidates
    assert (best.node.node_id, best.score) == ("a", 0)
    assert "is OFFLINE" in answer.value.excluded[0].reasons


async def test_status_changes_are_followed_through_it(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        events = client.follow_status_changes()
        assert await anext(events) == Bookmark(revision=2)
        await events.aclose()


async def test_what_is_refused_is_never_answered_from_the_past(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        for _ in range(MAX_FAILURES + 1):
            with pytest.raises(RequestRejectedError) as refused:
                await client.get_available_nodes({"maxCpuPercent": -1})
            assert refused.value.facts["field"] == "require.maxCpuPercent"
        assert not (await client.get_nodes()).is_stale


async def test_while_the_registry_is_away_the_last_good_reply_is_the_answer(
    server: LiveServer,
) -> None:
    moment = Time(1000.0)
    async with (
        run_proxy(server.url) as between,
        RegistryClient(between.url, stale_seconds=60, clock=moment.clock) as client,
    ):
        fresh = await client.get_node("node-1-hetzner-gex44")
        between.upstream = "http://127.0.0.1:9"
        between.cut()
        moment.now += 10
        stale = await client.get_node("node-1-hetzner-gex44")
        assert stale.value == fresh.value
        assert stale.is_stale
        assert 10 <= stale.age_seconds < 12
        with pytest.raises(RegistryUnavailableError):
            await client.get_node("another")
        moment.now += 60
        with pytest.raises(RegistryUnavailableError):
            await client.get_node("node-1-hetzner-gex44")


async def test_an_open_breaker_lets_nobody_wait_and_one_at_a_time_try(server: LiveServer) -> None:
    moment = Time(1000.0)
    async with (
        run_proxy(server.url) as between,
        RegistryClient(between.url, clock=moment.clock) as client,
    ):
        await client.get_nodes()
        upstream, between.upstream = between.upstream, "http://127.0.0.1:9"
        between.cut()
        with capture_logs() as events:
            for _ in range(MAX_FAILURES):
                assert (await client.get_nodes()).is_stale
            taken = between.taken
            for _ in range(100):
                assert (await client.get_nodes()).is_stale
            assert between.taken == taken
            moment.now += 10
            assert (await client.get_nodes()).is_stale
            assert between.taken == taken + 1
            between.upstream = upstream
            moment.now += 10
            assert not (await client.get_nodes()).is_stale
        assert [
            event["event"] for event in events if event["event"].startswith("circuit_breaker.")
        ] == [
            "circuit_breaker.opened",
            "circuit_breaker.closed",
        ]


async def test_those_who_ask_the_same_share_one_request(server: LiveServer, between: Proxy) -> None:
    await register(server, "a")
    async with RegistryClient(between.url) as client:
        answers = await asyncio.gather(*(client.get_node("a") for _ in range(200)))
        assert between.taken == 1
        assert all(answer is answers[0] for answer in answers)
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        assert (await client.get_node("a")).value is None


async def test_a_registry_that_does_not_answer_costs_no_more_than_the_timeout(
    between: Proxy,
) -> None:
    async with RegistryClient(between.url, timeout_seconds=1.0) as client:
        fresh = await client.get_nodes()
        between.starve()
        began = time.monotonic()
        stale = await client.get_nodes()
        assert time.monotonic() - began < 5
        assert stale.value == fresh.value
        assert stale.reason


async def test_who_gives_up_waiting_disturbs_nobody(server: LiveServer) -> None:
    async with RegistryClient(server.url) as client:
        leaves, stays = [asyncio.create_task(client.get_nodes()) for _ in range(2)]
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).value
