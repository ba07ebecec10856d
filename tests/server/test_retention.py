"""A running registry shows where its history begins."""

from tests.support.live_server import LiveServer


async def test_a_running_registry_shows_both(server: LiveServer) -> None:
    scraped = (await server.http.get("/metrics")).text
    assert "node_registry_misplaced_heartbeats 0.0" in scraped
    assert "node_registry_roll_up_lag_seconds 0.0" in scraped
