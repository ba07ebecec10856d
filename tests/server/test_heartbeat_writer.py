"""Group commit of heartbeats: concurrent ones share a write, and not each other's errors."""

import asyncio

from tests.support.api import BEAT, beat, register
from tests.support.live_server import LiveServer


async def test_concurrent_heartbeats_share_a_write(server: LiveServer) -> None:
    for number in range(20):
        await register(server, f"node-{number}")
    await asyncio.gather(*(beat(server, f"node-{number}", 1) for number in range(20)))
    metrics = (await server.http.get("/metrics")).text
    [size_line] = [line for line in metrics.splitlines() if "batch_size_sum" in line]
    [count_line] = [line for line in metrics.splitlines() if "batch_size_count" in line]
    assert float(size_line.split()[-1]) == 20
    assert float(count_line.split()[-1]) < 20


async def test_a_rejected_heartbeat_of_a_batch_fails_no_other(server: LiveServer) -> None:
    await register(server, "a")
    await register(server, "b")
    stale = {"nodeId": "a", "bootId": "boot-0", "sequence": 1}
    outcomes = await asyncio.gather(
        beat(server, "a", 1), server.post(BEAT, input=stale), beat(server, "b", 1)
    )
    assert [outcomes[0]["status"], outcomes[2]["status"]] == ["ONLINE", "ONLINE"]
    assert outcomes[1]["errors"][0]["extensions"]["code"] == "STALE_BOOT"
