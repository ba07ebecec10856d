"""Housekeeping: the change log has an end, and those who follow it are told."""

from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.api import CHANGES, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect

BATCH = """
mutation Batch($i: [RecordHeartbeatInput!]!) { recordHeartbeats(inputs: $i) { __typename } }
"""


def upkeep(server: LiveServer) -> Housekeeping:
    return Housekeeping(server.services.database, server.services.settings, Metrics())


async def changes_left(server: LiveServer) -> list[int]:
    data = await server.execute("{ statusChanges(first: 1000) { nodes { revision } } }")
    return [int(change["revision"]) for change in reversed(data["statusChanges"]["nodes"])]


async def test_old_changes_are_dropped_by_age_and_the_rest_has_no_gap(
    start_server: StartServer,
) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        await register(server, "a")
        await beat(server, "a", 1, status="DEGRADED")
        assert await upkeep(server).trim_change_log() == 4
        assert await changes_left(server) == []
        await beat(server, "a", 2)
        assert await changes_left(server) == [5]


async def test_old_changes_are_dropped_by_count(start_server: StartServer) -> None:
    async with start_server(change_log_max_rows=1000) as server:
        await register(server, "a")
        for start in range(0, 1100, 100):
            await server.execute(
                BATCH,
                i=[
                    {
                        "nodeId": "a",
                        "bootId": "boot-1",
                        "sequence": start + n,
                        "status": "ONLINE" if n % 2 else "DEGRADED",
                    }
                    for n in range(100)
                ],
            )
        await upkeep(server).trim_change_log()
        assert await changes_left(server) == list(range(104, 1104))


async def test_who_resumes_behind_the_trimmed_log_is_told_to_start_anew(
    start_server: StartServer,
) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        await register(server, "a")
        await upkeep(server).trim_change_log()
        async with connect(server.websocket_url) as client:
            await client.subscribe("1", CHANGES, after="1")
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            assert event["__typename"] == "ResyncRequired"
            assert event["revision"] == "3"


async def test_availability_outlives_the_log(start_server: StartServer) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        registered = (await register(server, "a"))["node"]
        query = 'query A($since: DateTime!) { node(nodeId: "a") { availability(since: $since) } }'
        at = (await server.execute('{ node(nodeId: "a") { registeredAt } }'))["node"]
        assert registered["status"] == "ONLINE"
        await upkeep(server).trim_change_log()
        data = await server.execute(query, since=at["registeredAt"])
        assert data["node"]["availability"] == 1.0
