"""The agent on a machine that sleeps: its process is stopped by SIGSTOP and continued."""

import asyncio
import os
import signal
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.live_server import LiveServer, StartServer
from tests.support.waiting import wait_until

INTERVAL_SECONDS = 0.4
FAST: dict[str, Any] = {
    "heartbeat_min_interval_seconds": INTERVAL_SECONDS,
    "heartbeat_grace_seconds": 1.0,
    "sweep_interval_seconds": 0.05,
    "keepalive_seconds": 0.5,  # the websocket does not outlive the sleep
    "protect_min_nodes": 1000,
}
NODE_QUERY = """
query($id: String!) {
  node(nodeId: $id) {
    status
    statusChanges { nodes { status reason } }
    heartbeats { nodes { receivedAt } }
  }
}
"""


async def fetch_node(server: LiveServer, node_id: str) -> dict[str, Any]:
    data = await server.execute(NODE_QUERY, id=node_id)
    node: dict[str, Any] = data["node"]
    return node


async def wait_for_status(
    server: LiveServer, node_id: str, status: str, *, heartbeats: int = 0
) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            node = await fetch_node(server, node_id)
            if node["status"] == status and len(node["heartbeats"]["nodes"]) >= heartbeats:
                return node
            await asyncio.sleep(0.02)


async def test_a_sleeping_machine_goes_offline_once_and_sends_no_missed_heartbeats_on_waking(
    start_server: StartServer, tmp_path: Path
) -> None:
    settings = {"NODE_AGENT_STATE_DIR": str(tmp_path / "agent"), "NODE_AGENT_SERVICES": "none"}
    async with start_server(**FAST) as server:
        agent = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "run", "--registry-url", server.url),
            env={**os.environ, **settings},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await wait_until((tmp_path / "agent" / "boot_id").exists, seconds=30)
            node_id = (tmp_path / "agent" / "node_id").read_text().strip()
            await wait_for_status(server, node_id, "ONLINE", heartbeats=2)
            agent.send_signal(signal.SIGSTOP)
            asleep = await wait_for_status(server, node_id, "OFFLINE")
            slept_seconds = 3 * INTERVAL_SECONDS
            await asyncio.sleep(slept_seconds)  # three heartbeats were due in this time
            agent.send_signal(signal.SIGCONT)
            heartbeats_before_sleep = len(asleep["heartbeats"]["nodes"])
            awake = await wait_for_status(
                server, node_id, "ONLINE", heartbeats=heartbeats_before_sleep + 4
            )
        finally:
            agent.kill()
            await agent.wait()
    changes = [(c["status"], c["reason"]) for c in reversed(awake["statusChanges"]["nodes"])]
    assert [change for change in changes if change[0] != "DEGRADED"] == [
        ("ONLINE", "REGISTERED"),
        ("OFFLINE", "MISSED_HEARTBEATS"),
        ("ONLINE", "HEARTBEAT"),
    ]
    times = sorted(datetime.fromisoformat(b["receivedAt"]) for b in awake["heartbeats"]["nodes"])
    times_after_sleep = times[heartbeats_before_sleep:]
    assert times_after_sleep[0] - times[heartbeats_before_sleep - 1] > timedelta(
        seconds=slept_seconds
    )
    gaps = [after - before for before, after in pairwise(times_after_sleep)]
    assert min(gaps) > timedelta(seconds=INTERVAL_SECONDS / 2)
