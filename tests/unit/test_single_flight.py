"""Work done once for all who ask at once; answers kept up to a bound, failures never."""

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
MOST = 5


@dataclass
class Work:
    """Ends when the test says so; counts how often each key's was begun."""

    begun: Counter[str] = field(default_factory=Counter)
    running: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    every: list[asyncio.Future[int]] = field(default_factory=list)

    def of(self, key: str) -> Callable[[], Coroutine[Any, Any, int]]:
        async def work() -> int:
            self.begun[key] += 1
            ending: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self.running[key] = ending
            self.every.append(ending)
            return await ending

        return work

    async def ended(self, key: str, outcome: int | Exception) -> None:
        if isinstance(outcome, Exception):
            self.running[key].set_exception(outcome)
        else:
            self.running[key].set_result(outcome)
        await settled()


async def settled() -> None:
    """Until all that is due to run has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def once() -> SingleFlight[str, int]:
    """Each answer weighs what it is."""
    return SingleFlight(MOST, weigh=lambda answer: answer)


def instant(answer: int) -> Callable[[], Coroutine[Any, Any, int]]:
    async def work() -> int:
        return answer

    return work


async def is_kept(kept: SingleFlight[str, int], key: str) -> bool:
    """Asks for it in vain where it is not: what answers is forgotten again."""
    answer = await kept.get(key, instant(0))
    if answer == 0:
        kept.forget(key)
    return answer != 0


async def test_those_who_ask_at_once_share_the_work_and_later_ones_the_answer() -> None:
    kept, work = once(), Work()
    asking = [asyncio.create_task(kept.get("a", work.of("a"))) for _ in range(3)]
    await settled()
    await work.ended("a", 2)
    assert await asyncio.gather(*asking) == [2, 2, 2]
    assert await kept.get("a", work.of("a")) == 2
    assert work.begun == {"a": 1}


async def test_the_work_goes_on_when_the_one_who_asked_first_is_cancelled() -> None:
    kept, work = once(), Work()
    first, second = (asyncio.create_task(kept.get("a", work.of("a"))) for _ in range(2))
    await settled()
    first.cancel()
    await work.ended("a", 2)
    assert await second == 2
    assert work.begun == {"a": 1}


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    kept, work = once(), Work()
    asking = [asyncio.create_task(kept.get("a", work.of("a"))) for _ in range(2)]
    await settled()
    await work.ended("a", ValueError("no"))
    for task in asking:
        with pytest.raises(ValueError, match="no"):
            await task
    assert await kept.get("a", instant(2)) == 2


async def test_work_that_was_cancelled_is_not_remembered() -> None:
    kept, work = once(), Work()
    task = kept.start("a", work.of("a"))
    await settled()
    task.cancel()
    await settled()
    assert await kept.get("a", instant(2)) == 2


async def test_the_answers_used_last_are_kept_up_to_the_weight() -> None:
    kept = once()
    for key in "abc":
        await kept.get(key, instant(2))
        await kept.get("a", instant(0))
    assert [await is_kept(kept, key) for key in "abc"] == [True, False, True]


async def test_an_answer_that_is_too_heavy_by_itself_drives_out_no_other() -> None:
    kept = once()
    await kept.get("a", instant(2))
    assert await kept.get("b", instant(MOST + 1)) == MOST + 1
    assert await is_kept(kept, "a")
    assert not await is_kept(kept, "b")


async def test_what_is_under_way_is_driven_out_by_nothing() -> None:
    kept, work = once(), Work()
    asking = asyncio.create_task(kept.get("a", work.of("a")))
    await settled()
    for key in "bcdef":
        await kept.get(key, instant(3))
    again = asyncio.create_task(kept.get("a", work.of("a")))
    await settled()
    await work.ended("a", 1)
    assert (await asking, await again) == (1, 1)
    assert work.begun == {"a": 1}


async def test_what_was_forgotten_while_under_way_is_not_remembered_and_weighs_nothing() -> None:
    kept, work = once(), Work()
    forgotten = kept.start("a", work.of("a"))
    await settled()
    kept.forget("a")
    work.running["a"].set_result(MOST)
    await settled()
    assert await forgotten == MOST
    for key in "ab":
        await kept.get(key, instant(2))
    assert [await is_kept(kept, key) for key in "ab"] == [True, True]


async def test_an_answer_forgotten_the_moment_it_comes_weighs_nothing_afterwards() -> None:
    kept = once()
    task = kept.start("a", instant(MOST))
    # Behind the work's last step, before anybody is told of its end.
    asyncio.get_running_loop().call_soon(kept.forget, "a")
    assert await task == MOST
    await settled()
    for key in "abc":
        await kept.get(key, instant(2))
    assert [await is_kept(kept, key) for key in "abc"] == [False, True, True]


async def test_a_failure_may_be_forgotten_the_moment_it_comes() -> None:
    kept, work = once(), Work()
    task = kept.start("a", work.of("a"))
    await settled()
    work.running["a"].set_exception(ValueError("no"))
    while not task.done():
        await asyncio.sleep(0)
    kept.forget("a")
    assert await kept.get("a", instant(2)) == 2


async def test_a_failure_that_nobody_waits_for_any_more_is_no_error_of_the_loop(
    logged: list[EventDict],
) -> None:
    kept, work = once(), Work()
    kept.start("a", work.of("a"))
    await settled()
    kept.forget("a")
    await work.ended("a", ValueError("no"))
    work.running.clear()
    work.every.clear()
    gc.collect()
    assert not logged


async def test_what_took_no_waiting_is_kept_as_well_and_as_bounded() -> None:
    kept, work = once(), Work()
    kept.store("a", 2)
    assert kept.get_stored("a") == await kept.get("a", work.of("a")) == 2
    kept.store("a", MOST)
    kept.store("b", MOST + 1)
    assert (kept.get_stored("a"), kept.get_stored("b")) == (MOST, None)
    kept.store("b", 1)
    assert (kept.get_stored("a"), kept.get_stored("b")) == (None, 1)
    assert not work.begun


class Model:
    """What is kept, oldest first, as plainly as it can be said."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self.running: set[str] = set()

    def begin(self, key: str) -> bool:
        """Whether the work has to be done."""
        if key in self.kept:
            self.kept[key] = self.kept.pop(key)
        elif key not in self.running:
            self.running.add(key)
            return True
        return False

    def end(self, key: str, outcome: int) -> None:
        self.running.discard(key)
        if 0 < outcome <= MOST:
            self.kept[key] = outcome
            while sum(self.kept.values()) > MOST:
                del self.kept[next(iter(self.kept))]

    def forget(self, key: str) -> None:
        self.kept.pop(key, None)
        self.running.discard(key)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "end", "end", "end and forget", "forget"]),
        st.sampled_from(KEYS),
        st.integers(0, MOST + 1),
    ),
    min_size=10,
    max_size=40,
)


@given(STEPS)
@settings(max_examples=200)
async def test_whatever_is_begun_ended_and_forgotten_the_newest_that_fit_are_kept(
    steps: list[tuple[str, str, int]],
) -> None:
    """An outcome of 0 is a failure. What ends is one of those under way."""
    kept, model, work, begun = once(), Model(), Work(), Counter[str]()
    for action, key, number in steps:
        if action == "begin":
            begun[key] += model.begin(key)
            _ = kept.get_stored(key) or kept.start(key, work.of(key))
        elif action == "forget":
            model.forget(key)
            kept.forget(key)
        elif model.running:
            ending = min(model.running)
            if number:
                work.running[ending].set_result(number)
            else:
                work.running[ending].set_exception(ValueError("no"))
            if action == "end and forget":
                await asyncio.sleep(0)  # the work ends, and nobody has been told
                model.forget(ending)
                kept.forget(ending)
            else:
                model.end(ending, number)
        await settled()
        assert work.begun == begun
    for key in KEYS:
        asked = asyncio.create_task(kept.get(key, instant(-1)))
        await settled()
        if key not in model.running:
            assert await asked == model.kept.get(key, -1)
        asked.cancel()
    for unended in work.every:
        unended.cancel()
    await settled()
