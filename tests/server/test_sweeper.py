"""The sweeper as operators see it: the mode of the registry, and the removal of nodes."""

import asyncio

from sqlalchemy import text

from tests.support.api import beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import connect

MODE = "{ registry { mode modeReason modeSince } }"


async def age_all(server: LiveServer, seconds: float) -> None:
    """Age the rows as if the registry had run this long without receiving a heartbeat."""
    async with server.services.database.write() as session:
        for statement in (
            "UPDATE nodes SET heard_at = heard_at - :s * interval '1s'",
            "UPDATE registry_state SET lease_floor = lease_floor - :s * interval '1s'",
            "UPDATE registry_state SET mode_since = mode_since - :s * interval '1s'",
        ):
            await session.execute(text(statement), {"s": seconds})


async def test_the_registry_is_protected_when_most_nodes_fall_silent_at_once(
    start_server: StartServer,
) -> None:
    async with start_server(sweep_interval_seconds=3600) as server:
        sweep = server.services.sweeper.sweep
        for number in range(12):
            await register(server, f"node-{number}")
        await age_all(server, 60)
        await sweep()
        protected = (await server.execute(MODE))["registry"]
        assert protected["mode"] == "PROTECTED"
        assert protected["modeReason"] == "12 of 12 live nodes fell silent at once"
        assert "node_registry_protected 1.0" in (await server.http.get("/metrics")).text
        counts = "{ registry { nodeCounts { degraded offline } } }"
        assert (await server.execute(counts))["registry"]["nodeCounts"] == {
            "degraded": 12,
            "offline": 2,
        }
        for number in range(10):
            await beat(server, f"node-{number}", 1)
        await sweep()
        normal = (await server.execute(MODE))["registry"]
        assert normal["mode"] == "NORMAL"
        assert normal["modeReason"] is None
        assert normal["modeSince"] > protected["modeSince"]
        await sweep()
        assert (await server.execute(counts))["registry"]["nodeCounts"] == {
            "degraded": 0,
            "offline": 4,
        }


async def test_silent_nodes_are_offline_after_protected_mode_reaches_its_time_limit(
    start_server: StartServer,
) -> None:
    async with start_server(sweep_interval_seconds=3600, protect_max_seconds=0.05) as server:
        sweep = server.services.sweeper.sweep
        for number in range(12):
            await register(server, f"node-{number}")
        await age_all(server, 60)
        assert (await sweep()).mode.name == "PROTECTED"
        async with asyncio.timeout(10):
            while (await sweep()).mode.name == "PROTECTED":
                await asyncio.sleep(0.01)
        await sweep()
        data = await server.execute("{ registry { mode nodeCounts { offline } } }")
        assert data["registry"] == {"mode": "NORMAL", "nodeCounts": {"offline": 14}}


async def test_a_small_fleet_is_never_protected(start_server: StartServer) -> None:
    async with start_server(sweep_interval_seconds=3600) as server:
        for number in range(9):
            await register(server, f"node-{number}")
        await age_all(server, 60)
        result = await server.services.sweeper.sweep()
        assert (result.mode.name, result.changed_nodes) == ("NORMAL", 9)
        data = await server.execute("{ registry { nodeCounts { offline } } }")
        assert data["registry"]["nodeCounts"]["offline"] == 11


async def test_nodes_with_a_label_are_removed_after_being_offline(
    start_server: StartServer,
) -> None:
    remove_after = {"ephemeral": 0.0}
    async with start_server(
        sweep_interval_seconds=3600, remove_offline_after_seconds=remove_after
    ) as server:
        await register(server, "pod", labels=["ephemeral"])
        await register(server, "host", labels=["permanent"])
        await age_all(server, 60)
        sweep = server.services.sweeper.sweep
        await sweep()
        await sweep()
        data = await server.execute(
            '{ pod: node(nodeId: "pod") { status } host: node(nodeId: "host") { status }'
            ' statusChanges(filter: {nodeIds: ["pod"]}, first: 1) { nodes { reason actor } } }'
        )
        assert data == {
            "pod": None,
            "host": {"status": "OFFLINE"},
            "statusChanges": {"nodes": [{"reason": "DEREGISTERED", "actor": "system/registry"}]},
        }


async def test_the_end_of_an_old_connection_does_not_end_the_new_run(
    quiet_server: LiveServer,
) -> None:
    server = quiet_server
    machine = {"hostname": "h", "localIp": "10.0.0.1"}
    record_heartbeat = (
        "mutation($i: RecordHeartbeatInput!) { recordHeartbeat(input: $i) { status } }"
    )
    async with connect(server.websocket_url) as old_connection:
        await register(server, "a", bootId="boot-1", **machine)
        await old_connection.subscribe(
            "1", record_heartbeat, i={"nodeId": "a", "bootId": "boot-1", "sequence": 1}
        )
        assert (await old_connection.receive())["type"] == "next"
        await register(server, "a", bootId="boot-2", replacesBootId="boot-1", **machine)
        await beat(server, "a", 1, boot_id="boot-2")
    assert (await server.services.sweeper.sweep()).changed_nodes == 0
    data = await server.execute('{ node(nodeId: "a") { status statusReason } }')
    assert data["node"] == {"status": "ONLINE", "statusReason": "REGISTERED"}
