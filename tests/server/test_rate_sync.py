"""Servers on one database share the failures that they count."""

import pytest

from graph.auth import rate_sync
from graph.auth.rate_limiter import RateLimiter
from graph.core.errors import RateLimited
from tests.support.api import wait_until_connected
from tests.support.live_server import StartServer
from tests.support.waiting import wait_until


def left(failures: RateLimiter) -> bool:
    try:
        failures.require_available("127.0.0.1")
    except RateLimited:
        return False
    return True


async def test_what_failed_at_one_server_counts_at_another(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_sync, "INTERVAL_SECONDS", 0.05)
    limited = {"auth": "required", "failed_logins_per_minute": 3}
    async with start_server(**limited) as one, start_server(**limited) as other:
        await wait_until_connected(other)
        for number in range(3):
            await one.http.post("/graphql", headers={"authorization": f"Bearer {number}"})
        await wait_until(lambda: not left(other.services.authentication.failed_logins))
        refused = await other.http.post("/graphql", headers={"authorization": "Bearer x"})
        assert refused.status_code == 429
