"""The router's question: ranked candidates, the reasons for the excluded nodes, and changes."""

import asyncio
import random
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest

from db.core.enums import NodeRanking, NodeStatus
from db.core.turns import run_to_end
from db.registry import nodes
from db.routing import node_delta
from db.routing.matching import NO_REQUIREMENTS
from graph.live.candidate_watch import MAX_STEPS, CandidateWatch, follow_candidates
from graph.live.stream_events import CandidateEntered, CandidatesSnapshot
from tests.support.api import BEAT, DEREGISTER, MAINTENANCE, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.statements import record_statements
from tests.support.transport_ws import Client, connect
from tests.support.waiting import wait_until

AVAILABLE = """
query Available($require: NodeRequirements, $rank: NodeRanking! = LEAST_LOADED, $limit: Int) {
  availableNodes(require: $require, rank: $rank, limit: $limit) {
    candidates { score node { nodeId status metrics { cpuPercent } } }
    excluded { nodeId reasons }
    revision
    observedAt
  }
}
"""

FOLLOW = """
subscription Follow($require: NodeRequirements) {
  availableNodesChanges(require: $require) {
    __typename
    ... on AvailableNodesSnapshot { revision nodes { nodeId } }
    ... on NodeBecameAvailable { revision node { nodeId status } }
    ... on NodeBecameUnavailable { revision nodeId reasons }
  }
}
"""

MINE = {"labels": {"all": ["mine"]}}


async def find_available(server: LiveServer, **variables: Any) -> dict[str, Any]:
    result: dict[str, Any] = (await server.execute(AVAILABLE, **variables))["availableNodes"]
    return result


async def list_candidates(server: LiveServer, **variables: Any) -> list[str]:
    return [
        found["node"]["nodeId"]
        for found in (await find_available(server, **variables))["candidates"]
    ]


async def register_own_node(server: LiveServer, node_id: str, **fields: Any) -> None:
    """Register a node with the label `mine`, and send `metrics` in a heartbeat if there are any."""
    metrics = fields.pop("metrics", None)
    await register(server, node_id, labels=["mine", *fields.pop("labels", [])], **fields)
    if metrics is not None:
        await beat(server, node_id, 1, metrics=metrics)


async def next_event(client: Client) -> dict[str, Any]:
    message = await client.receive()
    assert message["type"] == "next", message
    event: dict[str, Any] = message["payload"]["data"]["availableNodesChanges"]
    return event


async def test_the_least_loaded_node_comes_first(server: LiveServer) -> None:
    await register_own_node(server, "busy", metrics={"cpuPercent": 90})
    await register_own_node(server, "idle", metrics={"cpuPercent": 10})
    await register_own_node(server, "unknown")
    result = await find_available(server)
    found = [(c["node"]["nodeId"], c["score"]) for c in result["candidates"]]
    assert found == [("idle", 0.9), ("busy", pytest.approx(0.1)), ("unknown", 0)]
    assert result["candidates"][0]["node"]["metrics"] == {"cpuPercent": 10}
    assert result["revision"] == "5"


async def test_excluded_nodes_have_their_reasons(server: LiveServer) -> None:
    await register_own_node(server, "a", metrics={"gpus": [{"name": "g", "memoryFreeMb": 9120}]})
    await register_own_node(server, "b", role="BACKUP")
    await server.execute(MAINTENANCE, input={"nodeId": "b", "enabled": True})
    result = await find_available(
        server, require={"roles": ["PRODUCTION"], "minGpuMemoryFreeMb": 16000}
    )
    assert result["candidates"] == []
    assert {excluded["nodeId"]: excluded["reasons"] for excluded in result["excluded"]} == {
        "a": ["needs 16000 MB on one GPU, has 9120"],
        "b": [
            "is in MAINTENANCE",
            "has role BACKUP, needs PRODUCTION",
            "needs 16000 MB on one GPU, has none measured",
        ],
        "node-1-hetzner-gex44": [
            "is OFFLINE",
            "needs 16000 MB on one GPU, has none measured",
        ],
        "node-2-macbook-m4max": [
            "is OFFLINE",
            "has role DEVELOPMENT, needs PRODUCTION",
            "needs 16000 MB on one GPU, has none measured",
        ],
    }


async def test_every_requirement_counts(server: LiveServer) -> None:
    await register_own_node(
        server,
        "a",
        labels=["gpu"],
        capabilities={"models": ["llama", {"name": "qwen"}], "os": "linux"},
        metrics={
            "cpuPercent": 20,
            "memoryAvailableMb": 8000,
            "gpus": [{"name": "g", "memoryFreeMb": 9000}],
        },
    )
    met: dict[str, Any] = {
        "roles": ["PRODUCTION"],
        "types": ["WORKER"],
        "labels": {"all": ["gpu"], "any": ["gpu", "x"], "none": ["x"]},
        "capabilities": {"os": "linux"},
        "model": "qwen",
        "minMemoryAvailableMb": 8000,
        "minGpuMemoryFreeMb": 9000,
        "maxCpuPercent": 20,
    }
    assert await list_candidates(server, require=met) == ["a"]
    unmet: list[dict[str, Any]] = [
        {"roles": ["BACKUP"]},
        {"types": []},
        {"labels": {"none": ["gpu"]}},
        {"capabilities": {"os": "macos"}},
        {"model": "gpt"},
        {"minMemoryAvailableMb": 8001},
        {"minGpuMemoryFreeMb": 9001},
        {"maxCpuPercent": 19.9},
    ]
    for requirement in unmet:
        assert await list_candidates(server, require=met | requirement) == [], requirement


async def test_a_degraded_node_is_a_candidate_if_the_requirements_include_it(
    server: LiveServer,
) -> None:
    await register(server, "a")
    await beat(server, "a", 1, status="DEGRADED")
    assert await list_candidates(server) == []
    assert await list_candidates(server, require={"includeDegraded": True}) == ["a"]


async def test_limits_and_rankings_are_applied(server: LiveServer) -> None:
    for node_id, free in (("a", 1000), ("b", 3000), ("c", 2000)):
        await register_own_node(server, node_id, metrics={"memoryAvailableMb": free})
    assert await list_candidates(server, rank="MOST_FREE_MEMORY", limit=2) == ["b", "c"]
    assert await list_candidates(server, limit=0) == []
    rejected = await server.post(AVAILABLE, limit=1001)
    assert rejected["errors"][0]["extensions"]["field"] == "limit"


@pytest.mark.parametrize(
    ("require", "field"),
    [
        ({"capabilities": [1]}, "require.capabilities"),
        ({"capabilities": {"a": "x" * 4096}}, "require.capabilities"),
        ({"minMemoryAvailableMb": -1}, "require.minMemoryAvailableMb"),
        ({"model": "x" * 256}, "require.model"),
        ({"labels": {"any": ["x" * 256]}}, "require.labels.any[0]"),
    ],
)
async def test_bad_requirements_are_rejected_and_named(
    server: LiveServer, require: dict[str, Any], field: str
) -> None:
    [error] = (await server.post(AVAILABLE, require=require))["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"
    assert error["extensions"]["field"] == field


async def test_a_deeply_nested_requirement_is_rejected(server: LiveServer) -> None:
    nested: Any = {}
    for _ in range(900):
        nested = {"a": nested}
    await find_available(server)  # so that responses are cached
    [error] = (await server.post(AVAILABLE, require={"capabilities": nested}))["errors"]
    assert error["extensions"]["code"] == "BAD_INPUT"


async def test_a_change_is_in_the_result_within_a_second(server: LiveServer) -> None:
    await register_own_node(server, "a", metrics={"cpuPercent": 10})
    assert await list_candidates(server, require={"maxCpuPercent": 50}) == ["a"]
    changed_at = asyncio.get_running_loop().time()
    await beat(server, "a", 2, metrics={"cpuPercent": 99})
    while await list_candidates(server, require={"maxCpuPercent": 50}):
        assert asyncio.get_running_loop().time() < changed_at + 1.5
        await asyncio.sleep(0.02)


async def test_an_identical_query_costs_no_statement_until_something_changes(
    quiet_server: LiveServer,
) -> None:
    await register_own_node(quiet_server, "a")
    await find_available(quiet_server)
    with record_statements(quiet_server.services.database) as sent:
        for _ in range(20):
            assert await list_candidates(quiet_server) == ["a"]
    node_reads = [statement for statement in sent if "FROM nodes" in statement]
    assert len([read for read in node_reads if "heartbeat_log" not in read]) <= 1


async def test_identical_queries_of_one_snapshot_get_identical_responses(
    server: LiveServer,
) -> None:
    await register_own_node(server, "a")
    request = {"query": AVAILABLE, "variables": {"require": MINE}}
    replies = await asyncio.gather(*(server.http.post("/graphql", json=request) for _ in range(20)))
    assert len({reply.content for reply in replies}) <= 3
    other = await server.execute(AVAILABLE, require=MINE | {"types": ["ROUTER"]})
    assert other["availableNodes"]["candidates"] == []


async def test_a_rejected_query_is_rejected_again(server: LiveServer) -> None:
    await find_available(server)
    ids = set()
    for _ in range(3):
        [error] = (await server.post(AVAILABLE, require={"model": "x" * 256}))["errors"]
        ids.add(error["extensions"]["requestId"])
    assert len(ids) == 3


async def test_a_follower_receives_the_set_and_then_each_node_that_enters_or_leaves(
    server: LiveServer,
) -> None:
    await register_own_node(server, "a")
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", FOLLOW, require=MINE)
        assert await next_event(client) == {
            "__typename": "AvailableNodesSnapshot",
            "revision": "3",
            "nodes": [{"nodeId": "a"}],
        }
        await register_own_node(server, "b")
        assert await next_event(client) == {
            "__typename": "NodeBecameAvailable",
            "revision": "4",
            "node": {"nodeId": "b", "status": "ONLINE"},
        }
        await server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
        assert await next_event(client) == {
            "__typename": "NodeBecameUnavailable",
            "revision": "5",
            "nodeId": "a",
            "reasons": ["is in MAINTENANCE"],
        }
        await server.execute(DEREGISTER, input={"nodeId": "b"})
        left = await next_event(client)
        assert (left["nodeId"], left["reasons"]) == ("b", ["is no longer registered"])


async def test_metrics_labels_and_capabilities_make_a_node_enter_and_leave(
    server: LiveServer,
) -> None:
    require = {
        "labels": {"all": ["gpu"]},
        "model": "llama",
        "maxCpuPercent": 50,
    }
    llama = {"models": ["llama"]}
    async with connect(server.websocket_url) as client:
        await client.subscribe("1", FOLLOW, require=require)
        assert (await next_event(client))["nodes"] == []
        await register(server, "a", labels=["gpu"], capabilities=llama)
        await beat(server, "a", 1, metrics={"cpuPercent": 10})
        assert (await next_event(client))["node"]["nodeId"] == "a"
        await beat(server, "a", 2, metrics={"cpuPercent": 60})
        assert (await next_event(client))["reasons"] == ["needs CPU at most 50 %, has 60"]
        await beat(server, "a", 3, metrics={"cpuPercent": 10})
        assert (await next_event(client))["node"]["nodeId"] == "a"
        await register(server, "a", labels=["cpu"], capabilities=llama)
        assert (await next_event(client))["reasons"] == ["lacks label gpu"]
        await register(server, "a", labels=["gpu"], capabilities=llama)
        assert (await next_event(client))["node"]["nodeId"] == "a"
        await register(server, "a", capabilities={"models": []})
        assert (await next_event(client))["reasons"] == ["does not serve model llama"]


async def test_followers_on_two_servers_receive_the_changes_of_both(
    start_server: StartServer,
) -> None:
    async with (
        start_server() as server_1,
        start_server() as server_2,
        connect(server_1.websocket_url) as first,
        connect(server_2.websocket_url) as second,
    ):
        for client in (first, second):
            await client.subscribe("1", FOLLOW, require=MINE)
            assert (await next_event(client))["nodes"] == []
        await register_own_node(server_1, "a")
        await register_own_node(server_2, "b")
        for client in (first, second):
            entered = {(await next_event(client))["node"]["nodeId"] for _ in range(2)}
            assert entered == {"a", "b"}


async def test_a_watch_ends_with_its_last_follower(server: LiveServer) -> None:
    async with connect(server.websocket_url) as client:
        for operation in ("1", "2"):
            await client.subscribe(operation, FOLLOW, require=MINE)
            await client.receive()
        assert server.services.node_snapshot.subscriber_count == 2
        for operation in ("1", "2"):
            await client.send({"id": operation, "type": "complete"})
        await wait_until(lambda: not server.services.node_snapshot.subscriber_count)


async def test_a_follower_that_falls_behind_receives_the_set_again(server: LiveServer) -> None:
    await register_own_node(server, "a")
    async with server.services.database.read() as session:
        row = await nodes.find_node(session, "a")
        delta = await node_delta.read_delta(session, None)
    assert row is not None
    [online] = [candidate for candidate in delta.changed if candidate.node_id == "a"]
    offline = replace(online, status=NodeStatus.OFFLINE)
    watch = CandidateWatch(server.services.database, NO_REQUIREMENTS, [online], delta.revision)
    async with aclosing(follow_candidates(nullcontext(watch))) as events:
        [first] = await anext(events)
        assert isinstance(first, CandidatesSnapshot)
        for step in range(MAX_STEPS + 1):
            changed = [online if step % 2 else offline]
            movement = run_to_end(watch.find_movement(changed))
            watch.apply_movement(delta.revision, movement, [], {row.id: row})
        [snapshot] = await anext(events)
        assert snapshot == CandidatesSnapshot(3, [])
        movement = run_to_end(watch.find_movement([online]))
        watch.apply_movement(delta.revision, movement, [], {row.id: row})
        [entered] = await anext(events)
        assert isinstance(entered, CandidateEntered)


def apply_event(event: dict[str, Any], node_ids: set[str]) -> None:
    match event["__typename"]:
        case "AvailableNodesSnapshot":
            node_ids.clear()
            node_ids.update(node["nodeId"] for node in event["nodes"])
        case "NodeBecameAvailable":
            assert event["node"]["nodeId"] not in node_ids
            node_ids.add(event["node"]["nodeId"])
        case "NodeBecameUnavailable":
            node_ids.remove(event["nodeId"])


async def change_something(server: LiveServer, rng: random.Random, number: int) -> None:
    """Change a random node. Some changes are rejected, e.g. of a node that is not registered."""
    node_id = f"n{rng.randrange(6)}"
    match rng.randrange(5):
        case 0:
            await register(server, node_id, labels=[rng.choice(["mine", "other"])])
        case 1:
            await server.post(DEREGISTER, input={"nodeId": node_id})
        case 2:
            maintenance = {"nodeId": node_id, "enabled": rng.random() < 0.5}
            await server.post(MAINTENANCE, input=maintenance)
        case _:
            heartbeat = {
                "nodeId": node_id,
                "bootId": "boot-1",
                "sequence": number,
                "status": rng.choice(["ONLINE", "DEGRADED"]),
                "metrics": {"cpuPercent": rng.choice([10, 90])},
            }
            await server.post(BEAT, input=heartbeat)


async def test_the_events_of_followers_add_up_to_the_candidates(server: LiveServer) -> None:
    rng = random.Random(4)  # noqa: S311  # the same changes each time
    requirements: list[dict[str, Any]] = [{}, MINE, {"maxCpuPercent": 50, "includeDegraded": True}]
    followed_sets: list[set[str]] = [set() for _ in requirements]
    async with connect(server.websocket_url) as client:
        for number, require in enumerate(requirements):
            await client.subscribe(str(number), FOLLOW, require=require)
        for number in range(150):
            await change_something(server, rng, number)
        await register(server, "n6", labels=["mine"])
        async with asyncio.timeout(20):
            while "n6" not in followed_sets[0] or followed_sets != [
                set(await list_candidates(server, require=require)) for require in requirements
            ]:
                with suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(0.1):
                            message = await client.receive()
                        event = message["payload"]["data"]["availableNodesChanges"]
                        apply_event(event, followed_sets[int(message["id"])])


async def test_result_has_the_revision_at_which_its_candidates_were_matched(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router resumes from that revision: a change after it must not be skipped."""
    await register_own_node(server, "a")
    await server.execute(AVAILABLE)
    snapshot = server.services.node_snapshot
    reading, may_read = asyncio.Event(), asyncio.Event()
    find_nodes = nodes.find_nodes_by_uuid

    async def find_after_signal(*arguments: Any) -> Any:
        reading.set()
        await may_read.wait()
        return await find_nodes(*arguments)

    monkeypatch.setattr(nodes, "find_nodes_by_uuid", find_after_signal)
    ranking = asyncio.create_task(
        snapshot.rank_candidates(NO_REQUIREMENTS, NodeRanking.LEAST_LOADED, 7)
    )
    await reading.wait()
    matched_at = snapshot.revision
    await server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
    await wait_until(lambda: snapshot.revision > matched_at)
    may_read.set()
    _, revision, _ = await ranking
    assert revision == matched_at
