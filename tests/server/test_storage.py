"""Heartbeats find room again as soon as one was rejected for want of it."""

import pytest

from tests.support.api import BEAT, beat, register
from tests.support.live_server import StartServer
from tests.support.storage import fill_disk, list_days, log_noise
from tests.support.waiting import wait_until


async def test_heartbeat_that_finds_no_space_is_retried_with_success(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.live.housekeeping._PAUSE_SECONDS", 0.01)
    async with start_server() as server:
        database = server.services.database
        await register(server, "a")
        await log_noise(database, 0, 1, 2, 3)
        await fill_disk(database)
        report = {"nodeId": "a", "bootId": "boot-1", "sequence": 1}
        [error] = (await server.post(BEAT, input=report))["errors"]
        assert error["extensions"]["code"] == "UNAVAILABLE"
        assert error["extensions"]["retryAfterSeconds"] > 0

        async def is_accepted() -> bool:
            return "errors" not in await server.post(BEAT, input=report)

        await wait_until(is_accepted)
        await beat(server, "a", 2)
        assert await list_days(database) == [0, 1]
