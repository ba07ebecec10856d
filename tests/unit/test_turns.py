"""Long computations take turns on the event loop."""

import asyncio
from collections import Counter

import pytest

from db.core import turns
from db.core.turns import TURN_SECONDS, Steps, take_turns

STEP_SECONDS = TURN_SECONDS / 4


class Work:
    """Computations whose steps take STEP_SECONDS each, by a clock that only they move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.iteration = 0
        self.steps: Counter[tuple[int, str]] = Counter()

    def compute(self, name: str, count: int) -> Steps[str]:
        for _ in range(count):
            self.now += STEP_SECONDS
            self.steps[self.iteration, name] += 1
            yield
        return name

    async def count_iterations(self) -> None:
        while True:
            self.iteration += 1
            await asyncio.sleep(0)

    def list_iterations(self, name: str) -> list[int]:
        return [iteration for iteration, worker in self.steps if worker == name]

    def get_longest_iteration(self) -> float:
        totals: Counter[int] = Counter()
        for (iteration, _), count in self.steps.items():
            totals[iteration] += count
        return max(totals.values()) * STEP_SECONDS


@pytest.fixture
async def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    counted = Work()
    monkeypatch.setattr(turns, "perf_counter", lambda: counted.now)
    return counted


async def run(work: Work, **counts: int) -> list[str]:
    counting = asyncio.create_task(work.count_iterations())
    try:
        return await asyncio.gather(
            *(take_turns(work.compute(name, count)) for name, count in counts.items())
        )
    finally:
        counting.cancel()


async def test_a_computation_returns_its_result(work: Work) -> None:
    assert await run(work, a=0, b=1, c=100) == ["a", "b", "c"]


async def test_no_iteration_of_the_loop_lasts_longer_than_a_few_turns(work: Work) -> None:
    await run(work, **{f"work-{number}": 60 for number in range(30)})
    # The last of the first turns begins before the time of these is over, and one later turn.
    assert work.get_longest_iteration() <= 3 * TURN_SECONDS


async def test_long_computations_take_turns(work: Work) -> None:
    await run(work, a=60, b=60, c=60)
    first_end = min(max(work.list_iterations(name)) for name in "abc")
    for name in "abc":
        before = [n for n in work.list_iterations(name) if n <= first_end]
        assert sum(work.steps[iteration, name] for iteration in before) > 40


async def test_a_short_computation_does_not_wait_for_long_ones(work: Work) -> None:
    counting = asyncio.create_task(work.count_iterations())
    long = [asyncio.create_task(take_turns(work.compute(f"{n}", 1000))) for n in range(50)]
    for _ in range(60):
        await asyncio.sleep(0)
    before = work.iteration
    assert await take_turns(work.compute("short", 1)) == "short"
    assert work.iteration - before <= 1
    for task in (counting, *long):
        task.cancel()
    await asyncio.gather(counting, *long, return_exceptions=True)


async def test_a_cancelled_computation_stops_and_the_others_go_on(work: Work) -> None:
    cancelled = asyncio.create_task(take_turns(work.compute("cancelled", 1000)))
    other = asyncio.create_task(take_turns(work.compute("other", 100)))
    for _ in range(5):
        await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert await other == "other"
    assert sum(count for (_, name), count in work.steps.items() if name == "cancelled") < 1000


async def test_an_error_of_a_computation_is_its_caller_s(work: Work) -> None:
    def fail() -> Steps[None]:
        yield
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await take_turns(fail())
    assert await take_turns(work.compute("next", 1)) == "next"
