"""The turns of connections that send more than is read at once."""

import asyncio
import time

from graph.server.fair_queue import FairQueue


class Work:
    """A reader that takes `seconds` for each of its parts, or begins a request with each."""

    def __init__(
        self, queue: FairQueue, parts: int, *, seconds: float = 0, begins_request: bool = False
    ) -> None:
        self.parts = parts
        self._queue = queue
        self._seconds = seconds
        self._begins_request = begins_request
        queue.add(self)

    def read_part(self) -> bool:
        self.parts -= 1
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            pass
        if self.parts:
            self._queue.add(self)
        return self._begins_request


async def count_turns_of_others(*work: Work) -> int:
    """Return how often something else had its turn until all the work was done."""
    turns = 0
    while any(each.parts for each in work):
        await asyncio.sleep(0)
        turns += 1
    return turns


async def test_readers_take_turns() -> None:
    queue = FairQueue(asyncio.get_running_loop())
    long, short = Work(queue, 30, seconds=0.001), Work(queue, 2)
    await count_turns_of_others(short)
    assert 1 <= 30 - long.parts <= 5
    await count_turns_of_others(long)


async def test_everything_else_goes_on_between_the_turns_of_slow_readers() -> None:
    queue = FairQueue(asyncio.get_running_loop())
    started, cpu_started = time.perf_counter(), time.thread_time()
    work = [Work(queue, 5, seconds=0.003) for _ in range(4)]
    assert await count_turns_of_others(*work) >= 20
    assert time.perf_counter() - started > 20 * 0.003 * 2.5
    assert time.thread_time() > cpu_started


async def test_a_turn_begins_one_request() -> None:
    queue = FairQueue(asyncio.get_running_loop())
    work = Work(queue, 5, begins_request=True)
    assert await count_turns_of_others(work) >= 5
