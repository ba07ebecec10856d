"""Charts over weeks: the hourly metrics of a node over HTTP."""

from typing import Any

import pytest
from sqlalchemy import text

from db.retention import partitions
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.api import beat, register
from tests.support.live_server import LiveServer
from tests.support.statements import record_statements

CHART = """
query Chart($first: Int, $after: String, $since: DateTime, $until: DateTime) {
  node(nodeId: "gpu-1") {
    metricsHistory(first: $first, after: $after, since: $since, until: $until) {
      nodes { startsAt heartbeats cpuPercent { min avg max } loadAverage { avg } }
      edges { cursor node { startsAt } }
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
  }
}
"""
MEASURED = """
{
  nodes(filter: {nodeIds: ["gpu-1", "gpu-2"]}) {
    nodes {
      nodeId
      metricsHistory {
        nodes {
          heartbeats
          cpuPercent { min avg max }
          memoryPercent { min avg max }
          memoryAvailableMb { min avg max }
          diskPercent { min avg max }
          loadAverage { min avg max }
          gpuUtilizationPercent { min avg max }
          gpuMemoryFreeMb { min avg max }
          gpuTemperatureCelsius { min avg max }
        }
      }
    }
  }
}
"""


async def backdate_heartbeats(server: LiveServer, hours: float) -> None:
    """Move the time of all heartbeats back by this many hours."""
    database = server.services.database
    async with database.write() as session:
        await session.execute(
            text("UPDATE heartbeat_log SET timestamp = timestamp - :hours * interval '1h'"),
            {"hours": hours},
        )
        await partitions.make_day_partitions(session)


async def run_housekeeping(server: LiveServer) -> None:
    await Housekeeping(server.services.database, server.services.settings, Metrics()).run_once()


def make_range(least: float, mean: float, most: float) -> dict[str, float]:
    return {"min": least, "avg": mean, "max": most}


async def test_the_hours_of_a_node_come_in_pages_newest_first(server: LiveServer) -> None:
    await register(server, "gpu-1")
    for hour in range(5):
        for n in range(hour + 1):
            metrics = {"cpuPercent": 10 * hour + n}
            await beat(server, "gpu-1", 10 * hour + n, metrics=metrics)
        await backdate_heartbeats(server, 1)
    await backdate_heartbeats(server, 1)
    await run_housekeeping(server)

    async def query_history(**arguments: Any) -> dict[str, Any]:
        data = await server.execute(CHART, **arguments)
        found: dict[str, Any] = data["node"]["metricsHistory"]
        return found

    chart = await query_history()
    hours = chart["nodes"]
    assert [hour["heartbeats"] for hour in hours] == [5, 4, 3, 2, 1]
    assert [hour["cpuPercent"] for hour in hours] == [
        make_range(40, 42, 44),
        make_range(30, 31.5, 33),
        make_range(20, 21, 22),
        make_range(10, 10.5, 11),
        make_range(0, 0, 0),
    ]
    assert [hour["loadAverage"] for hour in hours] == [None] * 5
    starts = [hour["startsAt"] for hour in hours]
    assert all(start.endswith(":00:00+00:00") for start in starts)
    assert not chart["pageInfo"]["hasNextPage"]
    first = await query_history(first=2)
    assert [edge["node"]["startsAt"] for edge in first["edges"]] == starts[:2]
    assert first["pageInfo"]["hasNextPage"]
    rest = await query_history(first=1000, after=first["pageInfo"]["endCursor"])
    assert [hour["startsAt"] for hour in rest["nodes"]] == starts[2:]
    assert rest["pageInfo"]["hasPreviousPage"]
    some = await query_history(since=starts[3], until=starts[1])
    assert [hour["startsAt"] for hour in some["nodes"]] == starts[2:4]


async def test_every_measure_is_kept_and_many_nodes_cost_one_statement(
    quiet_server: LiveServer,
) -> None:
    server = quiet_server
    for node_id in ("gpu-1", "gpu-2"):
        await register(server, node_id)
    metrics = {
        "cpuPercent": 1,
        "memoryPercent": 2,
        "memoryAvailableMb": 3,
        "diskPercent": 4,
        "loadAverage": 5,
        "gpus": [
            {
                "name": "a",
                "utilizationPercent": 10,
                "memoryFreeMb": 20,
                "temperatureCelsius": 30,
            },
            {"name": "b", "utilizationPercent": 20, "memoryFreeMb": 10, "temperatureCelsius": 50},
            {"name": "c"},
        ],
    }
    await beat(server, "gpu-1", 1, metrics=metrics)
    await beat(server, "gpu-2", 1)
    await backdate_heartbeats(server, 2)
    await run_housekeeping(server)
    with record_statements(server.services.database) as sent:
        data = await server.execute(MEASURED)
    assert len([statement for statement in sent if "metrics_history" in statement]) == 1
    found = {node["nodeId"]: node["metricsHistory"]["nodes"] for node in data["nodes"]["nodes"]}
    expected = (1, 2, 3, 4, 5, 15, 20, 50)
    [measured], [unmeasured] = found["gpu-1"], found["gpu-2"]
    assert measured.pop("heartbeats") == unmeasured.pop("heartbeats") == 1
    assert list(measured.values()) == [make_range(value, value, value) for value in expected]
    assert set(unmeasured.values()) == {None}


async def test_the_current_hour_and_a_node_without_heartbeats_have_no_history(
    server: LiveServer,
) -> None:
    await register(server, "gpu-1")
    await beat(server, "gpu-1", 1)
    await run_housekeeping(server)
    data = await server.execute(CHART)
    assert data["node"]["metricsHistory"]["nodes"] == []


@pytest.mark.parametrize("arguments", [{"first": 1001}, {"first": -1}, {"after": "nothing"}])
async def test_an_invalid_page_size_or_cursor_is_rejected(
    server: LiveServer, arguments: dict[str, Any]
) -> None:
    await register(server, "gpu-1")
    body = await server.post(CHART, **arguments)
    assert body["errors"][0]["extensions"]["code"] == "BAD_INPUT"
    assert body["errors"][0]["extensions"]["field"] == next(iter(arguments))


async def test_dropped_heartbeats_are_in_the_history_but_not_in_the_metrics(
    server: LiveServer,
) -> None:
    await register(server, "gpu-1")
    await beat(server, "gpu-1", 1, metrics={"cpuPercent": 7})
    query = """
    { node(nodeId: "gpu-1") {
        lastHeartbeat metrics { cpuPercent } heartbeats { nodes { id } }
        metricsHistory { nodes { cpuPercent { avg } } }
    } }
    """
    assert (await server.execute(query))["node"]["metrics"] == {"cpuPercent": 7}
    await backdate_heartbeats(server, 20 * 24)
    await run_housekeeping(server)
    node = (await server.execute(query))["node"]
    assert node.pop("lastHeartbeat") is not None
    assert node == {
        "metrics": None,
        "heartbeats": {"nodes": []},
        "metricsHistory": {"nodes": [{"cpuPercent": {"avg": 7}}]},
    }
