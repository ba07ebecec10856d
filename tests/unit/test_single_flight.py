"""Single-flight: shared work, a bounded cache of results, and no cached failures."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.types import EventDict

from graph.core.single_flight import SingleFlight

KEYS = "abc"
MAX_WEIGHT = 5


@dataclass
class Work:
    """Work that ends when the test says so, and counts its starts per key."""

    starts: Counter[str] = field(default_factory=Counter)
    running: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    futures: list[asyncio.Future[int]] = field(default_factory=list)

    def make(self, key: str) -> Callable[[], Coroutine[Any, Any, int]]:
        async def work() -> int:
            self.starts[key] += 1
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self.running[key] = future
            self.futures.append(future)
            return await future

        return work

    async def end(self, key: str, outcome: int | Exception) -> None:
        if isinstance(outcome, Exception):
            self.running[key].set_exception(outcome)
        else:
            self.running[key].set_result(outcome)
        await settle()


async def settle() -> None:
    """Return once all callbacks that are due have run."""
    for _ in range(5):
        await asyncio.sleep(0)


def make_flight() -> SingleFlight[str, int]:
    """Return a single-flight whose results are their own weights."""
    return SingleFlight(MAX_WEIGHT, weigh=lambda result: result)


def instant(result: int) -> Callable[[], Coroutine[Any, Any, int]]:
    async def work() -> int:
        return result

    return work


async def is_cached(flight: SingleFlight[str, int], key: str) -> bool:
    """Return whether a result is cached, without leaving one behind."""
    result = await flight.get(key, instant(0))
    if result == 0:
        flight.forget(key)
    return result != 0


async def test_concurrent_callers_share_the_work_and_later_callers_the_result() -> None:
    flight, work = make_flight(), Work()
    callers = [asyncio.create_task(flight.get("a", work.make("a"))) for _ in range(3)]
    await settle()
    await work.end("a", 2)
    assert await asyncio.gather(*callers) == [2, 2, 2]
    assert await flight.get("a", work.make("a")) == 2
    assert work.starts == {"a": 1}


async def test_the_work_continues_when_the_first_caller_is_cancelled() -> None:
    flight, work = make_flight(), Work()
    first, second = (asyncio.create_task(flight.get("a", work.make("a"))) for _ in range(2))
    await settle()
    first.cancel()
    await work.end("a", 2)
    assert await second == 2
    assert work.starts == {"a": 1}


async def test_a_failure_reaches_all_callers_and_is_not_cached() -> None:
    flight, work = make_flight(), Work()
    callers = [asyncio.create_task(flight.get("a", work.make("a"))) for _ in range(2)]
    await settle()
    await work.end("a", ValueError("no"))
    for task in callers:
        with pytest.raises(ValueError, match="no"):
            await task
    assert await flight.get("a", instant(2)) == 2


async def test_cancelled_work_is_not_cached() -> None:
    flight, work = make_flight(), Work()
    task = flight.start("a", work.make("a"))
    await settle()
    task.cancel()
    await settle()
    assert await flight.get("a", instant(2)) == 2


async def test_the_most_recently_used_results_are_cached_up_to_the_weight() -> None:
    flight = make_flight()
    for key in "abc":
        await flight.get(key, instant(2))
        await flight.get("a", instant(0))
    assert [await is_cached(flight, key) for key in "abc"] == [True, False, True]


async def test_a_result_above_the_maximum_weight_evicts_no_other() -> None:
    flight = make_flight()
    await flight.get("a", instant(2))
    assert await flight.get("b", instant(MAX_WEIGHT + 1)) == MAX_WEIGHT + 1
    assert await is_cached(flight, "a")
    assert not await is_cached(flight, "b")


async def test_running_work_is_never_evicted() -> None:
    flight, work = make_flight(), Work()
    first = asyncio.create_task(flight.get("a", work.make("a")))
    await settle()
    for key in "bcdef":
        await flight.get(key, instant(3))
    second = asyncio.create_task(flight.get("a", work.make("a")))
    await settle()
    await work.end("a", 1)
    assert (await first, await second) == (1, 1)
    assert work.starts == {"a": 1}


async def test_work_forgotten_while_running_is_not_cached_and_weighs_nothing() -> None:
    flight, work = make_flight(), Work()
    forgotten = flight.start("a", work.make("a"))
    await settle()
    flight.forget("a")
    work.running["a"].set_result(MAX_WEIGHT)
    await settle()
    assert await forgotten == MAX_WEIGHT
    for key in "ab":
        await flight.get(key, instant(2))
    assert [await is_cached(flight, key) for key in "ab"] == [True, True]


async def test_a_result_forgotten_as_its_work_ends_weighs_nothing() -> None:
    flight = make_flight()
    task = flight.start("a", instant(MAX_WEIGHT))
    # Runs after the last step of the work and before the callbacks of its task.
    asyncio.get_running_loop().call_soon(flight.forget, "a")
    assert await task == MAX_WEIGHT
    await settle()
    for key in "abc":
        await flight.get(key, instant(2))
    assert [await is_cached(flight, key) for key in "abc"] == [False, True, True]


async def test_a_failure_may_be_forgotten_as_its_work_ends() -> None:
    flight, work = make_flight(), Work()
    task = flight.start("a", work.make("a"))
    await settle()
    work.running["a"].set_exception(ValueError("no"))
    while not task.done():
        await asyncio.sleep(0)
    flight.forget("a")
    assert await flight.get("a", instant(2)) == 2


async def test_a_failure_without_callers_is_not_an_error_of_the_event_loop(
    logged: list[EventDict],
) -> None:
    flight, work = make_flight(), Work()
    flight.start("a", work.make("a"))
    await settle()
    flight.forget("a")
    await work.end("a", ValueError("no"))
    work.running.clear()
    work.futures.clear()
    gc.collect()
    assert not logged


async def test_stored_results_are_cached_within_the_same_bound() -> None:
    flight, work = make_flight(), Work()
    flight.store("a", 2)
    assert flight.get_stored("a") == await flight.get("a", work.make("a")) == 2
    flight.store("a", MAX_WEIGHT)
    flight.store("b", MAX_WEIGHT + 1)
    assert (flight.get_stored("a"), flight.get_stored("b")) == (MAX_WEIGHT, None)
    flight.store("b", 1)
    assert (flight.get_stored("a"), flight.get_stored("b")) == (None, 1)
    assert not work.starts


class Model:
    """A simple model of the cache, least recently used first."""

    def __init__(self) -> None:
        self.cached: dict[str, int] = {}
        self.running: set[str] = set()

    def begin(self, key: str) -> bool:
        """Return whether the work has to be started."""
        if key in self.cached:
            self.cached[key] = self.cached.pop(key)
        elif key not in self.running:
            self.running.add(key)
            return True
        return False

    def end(self, key: str, outcome: int) -> None:
        self.running.discard(key)
        if 0 < outcome <= MAX_WEIGHT:
            self.cached[key] = outcome
            while sum(self.cached.values()) > MAX_WEIGHT:
                del self.cached[next(iter(self.cached))]

    def forget(self, key: str) -> None:
        self.cached.pop(key, None)
        self.running.discard(key)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "end", "end", "end and forget", "forget"]),
        st.sampled_from(KEYS),
        st.integers(0, MAX_WEIGHT + 1),
    ),
    min_size=10,
    max_size=40,
)


@given(STEPS)
@settings(max_examples=200)
async def test_the_cache_matches_the_model_after_any_steps(
    steps: list[tuple[str, str, int]],
) -> None:
    """An outcome of 0 is a failure; 'end' applies to any running work."""
    flight, model, work, starts = make_flight(), Model(), Work(), Counter[str]()
    for action, key, number in steps:
        if action == "begin":
            starts[key] += model.begin(key)
            _ = flight.get_stored(key) or flight.start(key, work.make(key))
        elif action == "forget":
            model.forget(key)
            flight.forget(key)
        elif model.running:
            ending = min(model.running)
            if number:
                work.running[ending].set_result(number)
            else:
                work.running[ending].set_exception(ValueError("no"))
            if action == "end and forget":
                await asyncio.sleep(0)  # the work ends before the callbacks of its task run
                model.forget(ending)
                flight.forget(ending)
            else:
                model.end(ending, number)
        await settle()
        assert work.starts == starts
    for key in KEYS:
        lookup = asyncio.create_task(flight.get(key, instant(-1)))
        await settle()
        if key not in model.running:
            assert await lookup == model.cached.get(key, -1)
        lookup.cancel()
    for running in work.futures:
        running.cancel()
    await settle()
