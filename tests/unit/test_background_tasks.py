"""Background tasks go on after a failure, and are dead when they go on failing."""

import asyncio
from functools import partial

import pytest
from structlog.types import EventDict

from db.core.errors import Unavailable
from db.core.restart_limit import RestartLimit
from graph.core.item_failures import handle_items, skip_poison
from graph.live.background_tasks import BackgroundTaskDied, BackgroundTasks
from tests.support.item_failures import count_item_failures

MAKE_LIMIT = partial(RestartLimit, max_short_runs=3, longest_delay_seconds=0.0)


async def test_a_task_that_fails_twice_is_started_again_logged_and_counted(
    logged: list[EventDict],
) -> None:
    tasks, runs, works = BackgroundTasks(MAKE_LIMIT), [0], asyncio.Event()
    before = count_item_failures("example")

    async def run() -> None:
        runs[0] += 1
        if runs[0] < 3:
            raise RuntimeError("as a test")
        works.set()
        await asyncio.Event().wait()

    tasks.start("example", run)
    async with asyncio.timeout(5):
        await works.wait()
    tasks.check_all()
    await tasks.stop()
    assert [event["event"] for event in logged] == ["background_task.failed"] * 2
    assert count_item_failures("example") == before + 2
    logged.clear()


@pytest.mark.parametrize("is_vital", [True, False])
async def test_a_task_that_goes_on_failing_is_dead_and_ends_the_process_only_if_it_is_vital(
    logged: list[EventDict], *, is_vital: bool
) -> None:
    tasks, died = BackgroundTasks(MAKE_LIMIT), asyncio.Event()

    async def run() -> None:
        if len(logged) == 2:
            died.set()
        raise RuntimeError("as a test")

    tasks.on_failure = lambda: logged.append({"event": "drained", "log_level": "info"})
    tasks.start("example", run, is_vital=is_vital)
    async with asyncio.timeout(5):
        await died.wait()
    await asyncio.sleep(0)
    await tasks.stop()
    events = [event["event"] for event in logged]
    drained = ["drained"] if is_vital else []
    assert events == [*["background_task.failed"] * 2, "background_task.died", *drained]
    if is_vital:
        with pytest.raises(BackgroundTaskDied, match="example"):
            tasks.check_all()
    logged.clear()


async def test_poison_items_fail_alone_in_few_calls(logged: list[EventDict]) -> None:
    calls = 0

    async def add(numbers: list[int]) -> int:
        nonlocal calls
        calls += 1
        if 77 in numbers:
            raise ValueError("as a test")
        return sum(numbers)

    before = count_item_failures("example")
    sums = await handle_items("example", list(range(100)), add)  # type: ignore[arg-type]
    assert sum(sums) == sum(range(100)) - 77
    assert calls < 20
    assert [(event["event"], event["item"]) for event in logged] == [
        ("background_task.item_failed", 77)
    ]
    assert count_item_failures("example") == before + 1
    logged.clear()


async def test_an_outage_makes_no_item_poisonous(logged: list[EventDict]) -> None:
    async def fail(_: object) -> None:
        raise Unavailable(1)

    with pytest.raises(Unavailable):
        await handle_items("example", [1, 2], fail)
    with pytest.raises(Unavailable), skip_poison("example"):
        raise Unavailable(1)
    assert not logged
