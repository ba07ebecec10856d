"""Housekeeping of the change log, and what its subscribers receive after a trim."""

from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.api import CHANGES, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect

BATCH = """
mutation Batch($i: [RecordHeartbeatInput!]!) { recordHeartbeats(inputs: $i) { __typename } }
"""


def make_housekeeping(server: LiveServer) -> Housekeeping:
    return Housekeeping(server.services.database, server.services.settings, Metrics())


async def list_revisions(server: LiveServer) -> list[int]:
    data = await server.execute("{ statusChanges(first: 1000) { nodes { revision } } }")
    return [int(change["revision"]) for change in reversed(data["statusChanges"]["nodes"])]


async def test_old_changes_are_dropped_by_age_and_the_rest_has_no_gap(
    start_server: StartServer,
) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        await register(server, "a")
        await beat(server, "a", 1, status="DEGRADED")
        assert await make_housekeeping(server).trim_change_log() == 4
        assert await list_revisions(server) == []
        await beat(server, "a", 2)
        assert await list_revisions(server) == [5]


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
        await make_housekeeping(server).trim_change_log()
        assert await list_revisions(server) == list(range(104, 1104))


async def test_a_subscriber_that_resumes_before_the_trimmed_log_gets_a_resync(
    start_server: StartServer,
) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        await register(server, "a")
        await make_housekeeping(server).trim_change_log()
        async with connect(server.websocket_url) as client:
            await client.subscribe("1", CHANGES, after="1")
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            assert event["__typename"] == "ResyncRequired"
            assert event["revision"] == "3"


async def test_availability_is_known_after_the_log_is_trimmed(start_server: StartServer) -> None:
    async with start_server(change_log_max_age_seconds=0.0001) as server:
        registered = (await register(server, "a"))["node"]
        query = 'query A($since: DateTime!) { node(nodeId: "a") { availability(since: $since) } }'
        node = (await server.execute('{ node(nodeId: "a") { registeredAt } }'))["node"]
        assert registered["status"] == "ONLINE"
        await make_housekeeping(server).trim_change_log()
        data = await server.execute(query, since=node["registeredAt"])
        assert data["node"]["availability"] == 1.0
