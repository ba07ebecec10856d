"""What a caller gets whose node sends more than it may."""

from typing import Any

from tests.support.api import BEAT, beat, register
from tests.support.live_server import LiveServer, StartServer

BATCH = """
mutation Batch($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    __typename
    ... on RecordHeartbeatPayload { nodeId metricsStored }
    ... on HeartbeatRejected { nodeId code retryAfterSeconds }
  }
}
"""
AT_ONCE = 12
MAX_AT_ONCE = AT_ONCE + 2


def make_input(node_id: str, sequence: int, **given: Any) -> dict[str, Any]:
    return {"nodeId": node_id, "bootId": "boot-1", "sequence": sequence, **given}


async def count_accepted(servers: list[LiveServer], node_id: str, tries: int) -> int:
    accepted = 0
    for n in range(tries):
        answer = await servers[n % len(servers)].post(BEAT, input=make_input(node_id, n))
        if "errors" in answer:
            extensions = answer["errors"][0]["extensions"]
            assert (extensions["code"], extensions["retryable"]) == ("RATE_LIMITED", True)
            assert 0 < extensions["retryAfterSeconds"] < 3
        else:
            accepted += 1
    return accepted


async def test_replicas_share_a_node_s_pace(start_server: StartServer) -> None:
    async with (
        start_server(heartbeats_per_interval=4) as one,
        start_server(heartbeats_per_interval=4) as two,
    ):
        await register(one, "a")
        assert AT_ONCE <= await count_accepted([one, two], "a", 40) <= MAX_AT_ONCE


async def test_of_a_gateway_s_batch_only_the_too_frequent_heartbeats_fail(
    start_server: StartServer,
) -> None:
    async with start_server(heartbeats_per_interval=4) as server:
        for node_id in ("a", "b"):
            await register(server, node_id)
        await count_accepted([server], "a", MAX_AT_ONCE)
        inputs = [make_input("a", 100), make_input("b", 1), make_input("unknown", 1)]
        results = (await server.execute(BATCH, inputs=inputs))["recordHeartbeats"]
        assert [(result["nodeId"], result.get("code")) for result in results] == [
            ("a", "RATE_LIMITED"),
            ("b", None),
            ("unknown", "NODE_NOT_FOUND"),
        ]
        assert 0 < results[0]["retryAfterSeconds"] < 3
        assert results[2]["retryAfterSeconds"] is None


async def test_metrics_beyond_the_bytes_of_the_day_are_dropped_and_counted(
    start_server: StartServer,
) -> None:
    async with start_server(node_bytes_per_day=64 * 1024) as server:
        await register(server, "a")
        metrics = {"cpuPercent": 7, "extra": {"noise": "x" * 15_000}}
        inputs = [make_input("a", n, metrics=metrics) for n in range(8)]
        results = (await server.execute(BATCH, inputs=inputs))["recordHeartbeats"]
        assert [result["metricsStored"] for result in results] == [True] * 2 + [False] * 6
        assert (await beat(server, "a", 9))["status"] == "ONLINE"
        metrics_page = (await server.http.get("/metrics")).text
        assert 'node_registry_node_budget_exceeded_total{sent="heartbeat"} 6.0' in metrics_page
