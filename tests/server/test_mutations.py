"""Mutations over HTTP: their responses and their effects."""

import asyncio

from sqlalchemy import text

from tests.support.api import BEAT, DEREGISTER, MAINTENANCE, REGISTER, beat, register
from tests.support.live_server import LiveServer, StartServer

BATCH = """
mutation Batch($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    __typename
    ... on RecordHeartbeatPayload { nodeId status nextHeartbeatInSeconds }
    ... on HeartbeatRejected { nodeId code message }
  }
}
"""


async def backdate_node(server: LiveServer, node_id: str, seconds: float) -> None:
    """Move a node's last heartbeat, and the lease floor, back by this many seconds."""
    floor = text("UPDATE registry_state SET lease_floor = lease_floor - :s * interval '1s'")
    earlier = text("UPDATE nodes SET heard_at = heard_at - :s * interval '1s' WHERE node_id = :n")
    async with server.services.database.write() as session:
        await session.execute(floor, {"s": seconds})
        await session.execute(earlier, {"s": seconds, "n": node_id})


async def test_a_registration_makes_a_node_online(server: LiveServer) -> None:
    payload = await register(server, "a", labels=["x", "x", "y"])
    assert payload["created"] is True
    assert 10 <= payload["nextHeartbeatInSeconds"] <= 11
    assert payload["node"]["status"] == "ONLINE"
    assert payload["node"]["statusReason"] == "REGISTERED"
    assert payload["node"]["labels"] == ["x", "y"]
    assert payload["node"]["lastHeartbeat"] is None


async def test_a_node_that_registers_again_is_the_same_node(server: LiveServer) -> None:
    first = await register(server, "a", labels=["x"], name="A")
    second = await register(server, "a", labels=["z"])
    assert second["created"] is False
    assert second["node"]["id"] == first["node"]["id"]
    assert second["node"]["labels"] == ["z"]
    assert second["node"]["name"] == "A"


async def test_a_unique_id_is_derived_from_the_hostname(server: LiveServer) -> None:
    ids = set()
    for boot in ("b1", "b2"):
        data = await server.execute(
            REGISTER,
            input={"role": "BACKUP", "type": "WORKER", "hostname": "Büro Mac", "bootId": boot},
        )
        ids.add(data["registerNode"]["node"]["nodeId"])
    assert len(ids) == 2
    assert all(node_id.startswith("b-ro-mac") for node_id in ids)


async def test_two_registrations_of_one_new_id_make_one_node(server: LiveServer) -> None:
    payloads = await asyncio.gather(*(register(server, "a") for _ in range(8)))
    assert sorted(payload["created"] for payload in payloads) == [False] * 7 + [True]
    assert len({payload["node"]["id"] for payload in payloads}) == 1


async def test_an_id_in_use_is_rejected_with_facts_about_its_holder(server: LiveServer) -> None:
    await register(server, "a", hostname="holder", localIp="10.0.0.1")
    body = await server.post(
        REGISTER,
        input={"nodeId": "a", "role": "BACKUP", "type": "WORKER", "bootId": "boot-2"},
    )
    [error] = body["errors"]
    facts = error["extensions"]
    assert facts["code"] == "NODE_ID_TAKEN"
    assert facts["retryable"] is True
    assert facts["holderHostname"] == "holder"
    assert facts["holderAddress"] == "10.0.0.1"
    assert 0 < facts["retryAfterSeconds"] <= 16


async def test_a_restart_on_the_same_machine_is_registered_immediately(server: LiveServer) -> None:
    machine = {"hostname": "h", "localIp": "10.0.0.1"}
    await register(server, "a", bootId="boot-1", **machine)
    second = await register(server, "a", bootId="boot-2", replacesBootId="boot-1", **machine)
    assert second["created"] is False
    body = await server.post(BEAT, input={"nodeId": "a", "bootId": "boot-1", "sequence": 1})
    assert body["errors"][0]["extensions"]["code"] == "STALE_BOOT"


async def test_a_heartbeat_is_recorded_and_the_next_one_scheduled(server: LiveServer) -> None:
    await register(server, "a")
    payload = await beat(server, "a", 1)
    assert payload["status"] == "ONLINE"
    assert 10 <= payload["nextHeartbeatInSeconds"] <= 11


async def test_a_repeated_heartbeat_changes_nothing(server: LiveServer) -> None:
    await register(server, "a")
    first = await beat(server, "a", 5, metrics={"cpuPercent": 1})
    second = await beat(server, "a", 5, metrics={"cpuPercent": 2})
    assert second == first
    data = await server.execute(
        '{ node(nodeId: "a") { metrics { cpuPercent } heartbeats { nodes { id } } } }'
    )
    assert data["node"]["metrics"] == {"cpuPercent": 1.0}
    assert len(data["node"]["heartbeats"]["nodes"]) == 1


async def test_a_heartbeat_of_an_unknown_node_tells_the_agent_to_register(
    server: LiveServer,
) -> None:
    body = await server.post(BEAT, input={"nodeId": "a", "bootId": "b", "sequence": 1})
    assert body["errors"][0]["extensions"]["code"] == "NODE_NOT_FOUND"
    assert body["errors"][0]["extensions"]["nodeId"] == "a"


async def test_heartbeats_and_sweeps_do_not_wait_for_connections_in_use_by_callers(
    start_server: StartServer,
) -> None:
    async with start_server(db_pool_size=2) as server:
        await register(server, "a")
        database, sweeper = server.services.database, server.services.sweeper
        async with database.open_connection(), database.open_connection(), asyncio.timeout(3):
            assert database.count_connections_in_use() == 2
            payload = await beat(server, "a", 1)
            await sweeper.sweep()
    assert payload["status"] == "ONLINE"


async def test_a_batch_answers_each_heartbeat_in_order(server: LiveServer) -> None:
    await register(server, "a")
    await register(server, "b")
    data = await server.execute(
        BATCH,
        inputs=[
            {"nodeId": "b", "bootId": "boot-1", "sequence": 1},
            {"nodeId": "nobody", "bootId": "boot-1", "sequence": 1},
            {"nodeId": "a", "bootId": "boot-0", "sequence": 1},
            {"nodeId": "a", "bootId": "boot-1", "sequence": -1},
            {"nodeId": "a", "bootId": "boot-1", "sequence": 1, "status": "DEGRADED"},
        ],
    )
    outcomes = [
        (result["nodeId"], result.get("status") or result["code"])
        for result in data["recordHeartbeats"]
    ]
    assert outcomes == [
        ("b", "ONLINE"),
        ("nobody", "NODE_NOT_FOUND"),
        ("a", "STALE_BOOT"),
        ("a", "BAD_INPUT"),
        ("a", "DEGRADED"),
    ]


async def test_silence_degrades_a_node_then_takes_it_offline_and_a_heartbeat_brings_it_back(
    quiet_server: LiveServer,
) -> None:
    server = quiet_server
    await register(server, "a")
    sweep = server.services.sweeper.sweep
    assert (await sweep()).changed_nodes == 0
    statuses = []
    for silence in (17, 25):
        await backdate_node(server, "a", silence)
        assert (await sweep()).changed_nodes == 1
        data = await server.execute('{ node(nodeId: "a") { status statusReason } }')
        statuses.append(tuple(data["node"].values()))
    payload = await beat(server, "a", 1)
    assert statuses == [("DEGRADED", "MISSED_HEARTBEATS"), ("OFFLINE", "MISSED_HEARTBEATS")]
    assert payload["status"] == "ONLINE"


async def test_maintenance_survives_heartbeats_and_registrations(server: LiveServer) -> None:
    await register(server, "a")
    started = await server.execute(
        MAINTENANCE, input={"nodeId": "a", "enabled": True, "note": "new disk"}
    )
    assert started["setMaintenance"]["node"]["status"] == "MAINTENANCE"
    assert (await beat(server, "a", 1))["status"] == "MAINTENANCE"
    assert (await register(server, "a"))["node"]["status"] == "MAINTENANCE"
    ended = await server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": False})
    assert ended["setMaintenance"]["node"] == {
        "nodeId": "a",
        "status": "ONLINE",
        "statusReason": "MAINTENANCE_ENDED",
    }


async def test_maintenance_that_ends_in_the_past_is_rejected(server: LiveServer) -> None:
    await register(server, "a")
    past = {"nodeId": "a", "enabled": True, "until": "2020-01-01T00:00:00Z"}
    body = await server.post(MAINTENANCE, input=past)
    assert body["errors"][0]["extensions"]["code"] == "BAD_INPUT"
    assert body["errors"][0]["extensions"]["field"] == "input.until"
    data = await server.execute('{ node(nodeId: "a") { status } }')
    assert data["node"]["status"] == "ONLINE"


async def test_a_removed_node_is_not_found_and_its_history_stays(server: LiveServer) -> None:
    await register(server, "a")
    data = await server.execute(DEREGISTER, input={"nodeId": "a", "note": "sold"})
    assert data["deregisterNode"] == {"nodeId": "a", "revision": "4"}
    remaining = await server.execute(
        '{ node(nodeId: "a") { nodeId } nodes { totalCount }'
        ' statusChanges(filter: {nodeIds: ["a"]}) { nodes { reason note status } } }'
    )
    assert remaining["node"] is None
    assert remaining["nodes"]["totalCount"] == 2
    assert remaining["statusChanges"]["nodes"] == [
        {"reason": "DEREGISTERED", "note": "sold", "status": "OFFLINE"},
        {"reason": "REGISTERED", "note": None, "status": "ONLINE"},
    ]
    body = await server.post(BEAT, input={"nodeId": "a", "bootId": "boot-1", "sequence": 9})
    assert body["errors"][0]["extensions"]["code"] == "NODE_NOT_FOUND"


async def test_a_removed_node_that_registers_again_is_a_new_node(server: LiveServer) -> None:
    first = await register(server, "a")
    await server.execute(DEREGISTER, input={"nodeId": "a"})
    second = await register(server, "a")
    assert second["created"] is True
    assert second["node"]["id"] != first["node"]["id"]


async def test_the_pace_slows_down_with_the_number_of_nodes(start_server: StartServer) -> None:
    async with start_server(heartbeat_target_rate=0.1) as server:
        for number in range(3):
            await register(server, f"node-{number}")
        await server.services.sweeper.sweep()
        payload = await beat(server, "node-0", 1)
    assert 30 <= payload["nextHeartbeatInSeconds"] <= 33
