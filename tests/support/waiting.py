"""Waiting for a condition that has no event of its own."""

import asyncio
import inspect
from collections.abc import Callable


async def wait_until(
    condition: Callable[[], object], *, seconds: float = 10, interval: float = 0.005
) -> None:
    """Return as soon as the condition, which may be a coroutine function, holds.

    Raises: TimeoutError: it did not hold within so many seconds.
    """
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(interval)
