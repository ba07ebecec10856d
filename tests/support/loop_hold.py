"""The longest time for which anything held the event loop, in seconds of its thread's CPU."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass
class LoopHold:
    """`longest_seconds` is final after the block that measures it."""

    longest_seconds: float = 0.0


@asynccontextmanager
async def measure_longest_hold() -> AsyncIterator[LoopHold]:
    """Measure the longest iteration of the loop during the block.

    CPU time of the thread is no longer on a busy machine than on an idle one.
    """
    hold = LoopHold()
    task = asyncio.create_task(_watch(hold))
    await asyncio.sleep(0)
    try:
        yield hold
        await asyncio.sleep(0)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(hold: LoopHold) -> None:
    before = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        hold.longest_seconds = max(hold.longest_seconds, now - before)
        before = now
