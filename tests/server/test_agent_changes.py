"""A machine that changes while its agent runs: the registry stores it without a status change."""

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from agent.http_transport import HttpTransport
from agent.machine import Machine
from agent.runner import REPORT_SECONDS
from agent.settings import load_settings
from tests.support.fake_time import Time
from tests.support.live_server import LiveServer
from tests.support.scripted_registry import make_runner, run_scripted_registry

MACHINE = Machine("gpu-1", "192.168.1.7", None, {"models": [], "cpuCount": 8}, {})
WITH_MODEL = replace(MACHINE, capabilities={"models": ["llama3:8b"], "cpuCount": 8})

NODE = """
query($id: String!) {
  node(nodeId: $id) {
    capabilities localIp status
    statusChanges { nodes { status reason } }
  }
}
"""


async def test_registry_stores_the_change_without_a_status_change(
    server: LiveServer, tmp_path: Path
) -> None:
    time = Time()
    async with run_scripted_registry() as unused:
        run = make_runner(unused, tmp_path, time)
    run.transport = HttpTransport(server.graphql_url, None)
    run.settings = load_settings({"registry_url": server.graphql_url})
    run.observe_machine = lambda: MACHINE
    async with aclosing(run.transport):
        await run.register()
        await run.send_heartbeat()
        before = await server.execute(NODE, id=run.node_id)
        run.observe_machine = lambda: replace(WITH_MODEL, local_ip="192.168.1.8")
        time.now += REPORT_SECONDS
        await run.report_changes()
        await run.send_heartbeat()
        after = await server.execute(NODE, id=run.node_id)
    assert after["node"]["capabilities"] == WITH_MODEL.capabilities
    assert after["node"]["localIp"] == "192.168.1.8"
    assert after["node"]["statusChanges"] == before["node"]["statusChanges"]
    assert len(after["node"]["statusChanges"]["nodes"]) == 1
