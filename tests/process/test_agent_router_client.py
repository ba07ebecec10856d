"""The router client answers while its registry is killed and restarted."""

import asyncio
import time
from typing import Any

from sqlalchemy import URL

from agent.router_client import Answer, RegistryClient
from tests.support.registry_process import Server, find_free_port
from tests.support.waiting import wait_until


async def test_a_client_keeps_answering_while_the_registry_is_killed_and_restarted(
    database_url: URL,
) -> None:
    url = database_url.render_as_string(hide_password=False)
    server = Server(find_free_port(), {"NODE_REGISTRY_DATABASE_URL": url})
    await server.start()
    await server.wait_until_ready()
    answers: list[Answer[Any]] = []
    finished: list[asyncio.Task[None]] = []
    slowest = 0.0

    async def keep_asking(client: RegistryClient) -> None:
        """Ask 200 times a second without waiting for the answers."""
        nonlocal slowest
        requests: set[asyncio.Task[None]] = set()

        async def ask() -> None:
            nonlocal slowest
            started_at = time.monotonic()
            answers.append(await client.get_available_nodes({"includeDegraded": True}))
            slowest = max(slowest, time.monotonic() - started_at)

        while True:
            task = asyncio.create_task(ask())
            requests.add(task)
            task.add_done_callback(requests.discard)
            task.add_done_callback(finished.append)
            await asyncio.sleep(0.005)

    try:
        async with RegistryClient(server.url, timeout_seconds=1) as client:
            await client.get_available_nodes({"includeDegraded": True})
            router = asyncio.create_task(keep_asking(client))
            async with asyncio.timeout(30):
                await wait_until(lambda: len(answers) >= 100, seconds=30)
                assert not any(answer.is_stale for answer in answers)
                await server.kill()
                await wait_until(
                    lambda: sum(answer.is_stale for answer in answers) >= 200, seconds=30
                )
                ages = [answer.age_seconds for answer in answers if answer.is_stale]
                assert ages[-1] > ages[0]
                await server.start()
                await server.wait_until_ready()
                await wait_until(lambda: not answers[-1].is_stale, seconds=30)
            router.cancel()
            await asyncio.gather(router, return_exceptions=True)
    finally:
        await server.kill()
    assert [
        task.exception() for task in finished if not task.cancelled() and task.exception()
    ] == []
    assert slowest < 2
