"""The metrics of heartbeats, errors and the change log at /metrics."""

import asyncio

import pytest

from graph.live.change_feed import ChangeFeed
from graph.live.heartbeat_writer import MAX_QUEUED_REPORTS
from graph.services import Services
from tests.support.api import BEAT, beat, register
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import open_websocket

HEARTBEATS = "node_registry_heartbeats_total"


def get_count(services: Services, name: str, **labels: str) -> float:
    """Return the value of the counter; 0 while it does not exist."""
    return services.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_heartbeats_are_counted_by_outcome(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(server, "a")
    await asyncio.gather(*(beat(server, "a", number) for number in range(1, 6)))
    services = server.services
    last = {"nodeId": "a", "bootId": "boot-1", "sequence": 9}
    await server.post(BEAT, input={**last, "bootId": "boot-0"})
    monkeypatch.setattr(services.heartbeat_writer, "queued_reports", MAX_QUEUED_REPORTS)
    await server.post(BEAT, input=last)
    monkeypatch.setattr(services.heartbeat_writer, "queued_reports", 0)
    assert get_count(services, HEARTBEATS, outcome="accepted") == 5
    assert get_count(services, HEARTBEATS, outcome="STALE_BOOT") == 1
    assert get_count(services, HEARTBEATS, outcome="UNAVAILABLE") == 1
    operations = "node_registry_operation_duration_seconds_count"
    mutation = {"operation": "other", "type": "mutation"}
    assert get_count(services, operations, **mutation, outcome="STALE_BOOT") == 1
    assert get_count(services, operations, **mutation, outcome="UNAVAILABLE") == 1


async def test_errors_are_counted_by_code_on_every_transport(
    start_server: StartServer,
) -> None:
    async with start_server(auth="required") as server:
        name, code = "node_registry_errors_total", "UNAUTHENTICATED"
        before = get_count(server.services, name, code=code)
        assert (await server.http.get("/graphql?query={a}")).status_code == 401
        async with open_websocket(server.websocket_url) as client:
            await client.send({"type": "connection_init"})
            assert (await client.wait_for_close())[0] == 4401
        assert get_count(server.services, name, code=code) == before + 2


async def test_stalled_feed_lags_by_the_age_of_its_oldest_unread_change(
    quiet_server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_nothing(*_: object) -> bool:
        return False

    monkeypatch.setattr(ChangeFeed, "read_up_to", read_nothing)
    await register(quiet_server, "a")
    await register(quiet_server, "b")
    lines = dict(
        line.rsplit(" ", 1)
        for line in (await quiet_server.http.get("/metrics")).text.splitlines()
        if line[0] != "#"
    )
    assert float(lines["node_registry_log_revision"]) == 4
    assert float(lines["node_registry_revision"]) == 2
    assert 0 < float(lines["node_registry_feed_lag_seconds"]) < 60
