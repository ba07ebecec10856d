"""The retention metrics of a running registry."""

from tests.support.live_server import LiveServer


async def test_running_registry_exports_misplaced_heartbeats_and_roll_up_lag(
    server: LiveServer,
) -> None:
    metrics = (await server.http.get("/metrics")).text
    assert "node_registry_misplaced_heartbeats 0.0" in metrics
    assert "node_registry_roll_up_lag_seconds 0.0" in metrics
