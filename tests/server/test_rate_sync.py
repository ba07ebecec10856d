"""Servers on one database that share the counts of failed logins."""

import pytest

from db.core.errors import RateLimited
from graph.auth import rate_sync
from graph.auth.rate_limiter import RateLimiter
from tests.support.api import wait_until_connected
from tests.support.live_server import StartServer
from tests.support.waiting import wait_until


def is_available(failures: RateLimiter) -> bool:
    try:
        failures.require_available("127.0.0.1")
    except RateLimited:
        return False
    return True


async def test_failed_logins_at_one_server_count_at_another(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.05)
    options = {"auth": "required", "failed_logins_per_minute": 3}
    async with start_server(**options) as first, start_server(**options) as second:
        await wait_until_connected(second)
        for number in range(3):
            await first.http.post("/graphql", headers={"authorization": f"Bearer {number}"})
        await wait_until(lambda: not is_available(second.services.authentication.failed_logins))
        rejected = await second.http.post("/graphql", headers={"authorization": "Bearer x"})
        assert rejected.status_code == 429
