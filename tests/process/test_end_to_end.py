"""Registry, agent and clients as users run them: processes, signals, kill -9, gql's client."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from gql import Client, gql
from gql.transport.websockets import WebsocketsTransport

from tests.support.api import BEAT, CHANGES, REGISTER
from tests.support.clusters import find_processes
from tests.support.live_server import NO_TLS
from tests.support.processes import (
    BIN,
    FAST,
    SECONDS,
    query_until_answered,
    run_program,
    run_registry,
)
from tests.support.transport_ws import connect
from tests.support.waiting import wait_until


def find_agents(data_dir: Path) -> list[psutil.Process]:
    """Return the development agents whose state is in the data folder."""
    agents = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("NODE_AGENT_STATE_DIR") == str(data_dir / "agent"):
                agents.append(process)
    return agents


async def follow_with_gql(url: str, node_id: str, expected: list[str]) -> list[str]:
    """Return the statuses that gql's client receives for a node, until all expected have come."""
    transport = WebsocketsTransport(
        url.replace("http", "ws", 1), subprotocols=["graphql-transport-ws"]
    )
    received: list[str] = []
    request = gql(CHANGES)
    request.variable_values = {"after": "0", "filter": {"nodeIds": [node_id]}}
    async with Client(transport=transport) as session:
        async for event in session.subscribe(request):
            change = event["nodeStatusChanges"].get("change")
            if change is not None:
                received.append(change["status"])
            if received == expected:
                return received
    return received


async def follow_with_protocol(url: str, node_id: str, expected: list[str]) -> list[str]:
    """Return the same statuses, received by the plain protocol."""
    received: list[str] = []
    async with connect(url.replace("http", "ws", 1)) as client:
        await client.subscribe("1", CHANGES, after="0", filter={"nodeIds": [node_id]})
        while received != expected:
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            if "change" in event:
                received.append(event["change"]["status"])
    return received


async def test_this_machine_goes_online_and_then_offline_when_its_agent_is_killed(
    data_dir: Path, tmp_path: Path
) -> None:
    async with run_registry(data_dir) as (_, url):
        settings = {"NODE_AGENT_REGISTRY_URL": url, "NODE_AGENT_STATE_DIR": str(tmp_path / "agent")}
        async with run_program(BIN / "node-agent", "--verbose", "run", **settings) as agent:
            await agent.wait_for_line("heartbeat.recorded")
            node_id = (tmp_path / "agent" / "node_id").read_text().strip()
            agent.process.kill()
        statuses = ["ONLINE", "DEGRADED", "OFFLINE"]
        async with asyncio.timeout(SECONDS):
            assert await follow_with_gql(url, node_id, statuses) == statuses
            assert await follow_with_protocol(url, node_id, statuses) == statuses


async def test_a_restarted_agent_keeps_its_node_id_and_registers_at_once(
    data_dir: Path, tmp_path: Path
) -> None:
    slow = {"NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "60"}
    async with run_registry(data_dir, **slow) as (_, url):
        settings = {"NODE_AGENT_REGISTRY_URL": url, "NODE_AGENT_STATE_DIR": str(tmp_path / "agent")}
        bootstrap = (BIN / "node-agent", "bootstrap", "--role", "production-router", "--json")
        ids = []
        for _ in range(2):
            async with run_program(*bootstrap, "--labels", "router,gateway", **settings) as agent:
                ids.append((await agent.wait_for_line('"nodeId":"([^"]+)"')).group(1))
        query = '{ nodes(filter: {labels: {all: ["router"]}}) { nodes { nodeId role type } } }'
        data = await query_until_answered(url, query)
    assert ids[0] == ids[1]
    assert data["nodes"]["nodes"] == [{"nodeId": ids[0], "role": "PRODUCTION", "type": "ROUTER"}]


async def test_an_agent_recovers_from_a_registry_restart_and_from_its_removal(
    data_dir: Path, tmp_path: Path
) -> None:
    settings = {"NODE_AGENT_STATE_DIR": str(tmp_path / "agent")}
    port = {}
    async with run_registry(data_dir) as (process, url):
        port = {"NODE_REGISTRY_HTTP_PORT": url.split(":")[2].split("/")[0]}
        settings["NODE_AGENT_REGISTRY_URL"] = url
        command = (BIN / "node-agent", "--verbose", "run")
        async with run_program(*command, **settings) as agent:
            await agent.wait_for_line("heartbeat.recorded")
            node_id = (tmp_path / "agent" / "node_id").read_text().strip()
            assert await process.stop(signal.SIGTERM) == 0
            await agent.wait_for_line("registry.restarting")
            async with run_registry(data_dir, **port) as (_, restarted_url):
                await agent.wait_for_line("registry.recovered")
                await agent.wait_for_line("heartbeat.recorded")
                removal = (
                    "mutation($i: DeregisterNodeInput!) { deregisterNode(input: $i) { nodeId } }"
                )
                await query_until_answered(restarted_url, removal, i={"nodeId": node_id})
                await agent.wait_for_line("node.removed")
                await agent.wait_for_line("heartbeat.recorded")
                data = await query_until_answered(
                    restarted_url, f'{{ node(nodeId: "{node_id}") {{ status }} }}'
                )
                assert data["node"] == {"status": "ONLINE"}
                assert await agent.stop(signal.SIGTERM) == 0


async def test_every_acknowledged_heartbeat_survives_a_kill(data_dir: Path) -> None:
    acknowledged: set[tuple[str, str]] = set()
    nodes = [f"node-{number}" for number in range(8)]

    async def keep_sending_heartbeats(http: httpx.AsyncClient, url: str, node_id: str) -> None:
        sequence = 0
        while True:
            sequence += 1
            heartbeat = {"nodeId": node_id, "bootId": "b", "sequence": sequence}
            response = await http.post(url, json={"query": BEAT, "variables": {"input": heartbeat}})
            recorded = response.json()["data"]["recordHeartbeat"]
            acknowledged.add((node_id, recorded["receivedAt"]))

    async with run_registry(data_dir) as (process, url), httpx.AsyncClient(timeout=10) as http:
        for node_id in nodes:
            node = {"nodeId": node_id, "role": "BACKUP", "type": "WORKER", "bootId": "b"}
            await query_until_answered(url, REGISTER, input=node)
        tasks = [
            asyncio.create_task(keep_sending_heartbeats(http, url, node_id)) for node_id in nodes
        ]
        await wait_until(lambda: len(acknowledged) >= 200, seconds=SECONDS)
        process.process.kill()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, httpx.TransportError) for outcome in outcomes)
    async with run_registry(data_dir) as (process, url):
        query = "{ nodes { nodes { nodeId heartbeats(first: 1000) { nodes { receivedAt } } } } }"
        data = await query_until_answered(url, query)
        logged = {
            (node["nodeId"], heartbeat["receivedAt"])
            for node in data["nodes"]["nodes"]
            for heartbeat in node["heartbeats"]["nodes"]
        }
        assert acknowledged <= logged
        assert await process.stop(signal.SIGINT) == 0


async def test_the_development_agent_registers_this_machine_and_ctrl_c_leaves_no_process(
    new_data_dir: Path,
) -> None:
    node_ids = []
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        async with run_registry(new_data_dir, NODE_REGISTRY_DEV_AGENT="true") as (process, url):
            query = "{ nodes(filter: {statuses: [ONLINE]}) { nodes { nodeId role } } }"
            online: list[dict[str, str]] = []
            async with asyncio.timeout(SECONDS):
                while not online:
                    online = (await query_until_answered(url, query))["nodes"]["nodes"]
            assert [node["role"] for node in online] == ["DEVELOPMENT"]
            node_ids.append(online[0]["nodeId"])
            assert await process.stop(signal_number) == 0
        assert find_processes(new_data_dir) == []
    assert node_ids[0] == node_ids[1]


async def test_the_development_agent_exits_with_its_killed_registry_and_blocks_no_start(
    data_dir: Path,
) -> None:
    async with run_registry(data_dir, NODE_REGISTRY_DEV_AGENT="true") as (process, url):
        query = "{ nodes(filter: {statuses: [ONLINE]}) { totalCount } }"
        async with asyncio.timeout(SECONDS):
            while (await query_until_answered(url, query))["nodes"]["totalCount"] == 0:
                pass
            process.process.kill()
            await wait_until(lambda: not find_agents(data_dir), seconds=SECONDS, interval=0.02)
    async with run_registry(data_dir, NODE_REGISTRY_DEV_AGENT="true") as (process, url):
        async with asyncio.timeout(SECONDS):
            while (await query_until_answered(url, query))["nodes"]["totalCount"] == 0:
                pass
        assert await process.stop(signal.SIGINT) == 0
    assert find_processes(data_dir) == []


async def test_a_killed_database_is_restarted_and_the_registry_recovers(data_dir: Path) -> None:
    async with run_registry(data_dir) as (process, url):
        node = {"nodeId": "a", "role": "BACKUP", "type": "WORKER", "bootId": "b"}
        await query_until_answered(url, REGISTER, input=node)
        pid = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        await process.wait_for_line("embedded.died")
        beat = {"nodeId": "a", "bootId": "b", "sequence": 1}
        data = await query_until_answered(url, BEAT, input=beat)
        assert data["recordHeartbeat"]["nodeId"] == "a"
        async with connect(url.replace("http", "ws", 1)) as client:
            await client.subscribe("1", CHANGES, after="2", filter={"nodeIds": ["a"]})
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            assert event["change"]["reason"] == "REGISTERED"
        assert await process.stop(signal.SIGTERM) == 0


async def test_a_registry_that_was_stopped_marks_no_node_offline(
    data_dir: Path, tmp_path: Path
) -> None:
    # The lease of 4.9 s is shorter than the stop, and longer than the agent's retry delay.
    grace = {"NODE_REGISTRY_HEARTBEAT_GRACE_SECONDS": "4"}
    async with run_registry(data_dir, **grace) as (process, url):
        settings = {"NODE_AGENT_REGISTRY_URL": url, "NODE_AGENT_STATE_DIR": str(tmp_path / "agent")}
        async with run_program(BIN / "node-agent", "--verbose", "run", **settings) as agent:
            await agent.wait_for_line("heartbeat.recorded")
            process.process.send_signal(signal.SIGSTOP)
            await agent.wait_for_line("request.failed")  # after a timeout of ten seconds
            process.process.send_signal(signal.SIGCONT)
            await process.wait_for_line("registry.outage_ended")
            await agent.wait_for_line("registry.recovered")
            log = "{ statusChanges { nodes { status reason } } }"
            changes = (await query_until_answered(url, log))["statusChanges"]["nodes"]
            assert [c["status"] for c in changes if c["reason"] == "MISSED_HEARTBEATS"] == []


async def test_a_registry_on_all_interfaces_requires_authentication(data_dir: Path) -> None:
    host = {"NODE_REGISTRY_HTTP_HOST": "0.0.0.0"}  # noqa: S104  # the setting under test
    async with (
        run_registry(data_dir, **host) as (process, url),
        httpx.AsyncClient(verify=NO_TLS) as http,
    ):
        assert (await http.post(url, json={"query": "{ __typename }"})).status_code == 401
        assert await process.stop(signal.SIGTERM) == 0


async def test_a_registry_without_authentication_logs_it(data_dir: Path) -> None:
    settings = FAST | {"NODE_REGISTRY_DATA_DIR": str(data_dir)}
    async with run_program(BIN / "node-registry", "serve", **settings) as process:
        await process.wait_for_line(r"authentication\.disabled +.*address=127\.0\.0\.1")
        assert await process.stop(signal.SIGTERM) == 0


async def test_a_registry_on_all_interfaces_does_not_start_without_authentication(
    data_dir: Path,
) -> None:
    settings = FAST | {
        "NODE_REGISTRY_DATA_DIR": str(data_dir),
        "NODE_REGISTRY_HTTP_HOST": "0.0.0.0",  # noqa: S104  # the setting under test
        "NODE_REGISTRY_AUTH": "off",
    }
    async with run_program(BIN / "node-registry", "serve", **settings) as process:
        await process.wait_for_line("NODE_REGISTRY_LET_ANYONE_DO_ANYTHING=true allows it")
        assert await process.process.wait() == 1
