"""A machine that sleeps: its agent is a process that stands still, and goes on."""

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
STORY = """
query($id: String!) {
  node(nodeId: $id) {
    status
    statusChanges { nodes { status reason } }
    heartbeats { nodes { receivedAt } }
  }
}
"""


async def story(server: LiveServer, node_id: str) -> dict[str, Any]:
    data = await server.execute(STORY, id=node_id)
    node: dict[str, Any] = data["node"]
    return node


async def wait_for_status(
    server: LiveServer, node_id: str, status: str, *, beats: int = 0
) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            node = await story(server, node_id)
            if node["status"] == status and len(node["heartbeats"]["nodes"]) >= beats:
                return node
            await asyncio.sleep(0.02)


async def test_sleep_is_one_offline_and_one_online_and_nothing_is_made_up_for(
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
            await wait_for_status(server, node_id, "ONLINE", beats=2)
            agent.send_signal(signal.SIGSTOP)
            asleep = await wait_for_status(server, node_id, "OFFLINE")
            slept_seconds = 3 * INTERVAL_SECONDS
            await asyncio.sleep(slept_seconds)  # it might have sent so many meanwhile
            agent.send_signal(signal.SIGCONT)
            heard = len(asleep["heartbeats"]["nodes"])
            awake = await wait_for_status(server, node_id, "ONLINE", beats=heard + 4)
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
    since = times[heard:]
    assert since[0] - times[heard - 1] > timedelta(seconds=slept_seconds)
    gaps = [after - before for before, after in pairwise(since)]
    assert min(gaps) > timedelta(seconds=INTERVAL_SECONDS / 2)
