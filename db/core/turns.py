"""Long computations that take turns on the event loop, so that none of them holds it for long.

Such a computation is a generator: it yields after each small, bounded number of steps, and returns
its result.
"""

import asyncio
from asyncio import AbstractEventLoop, Lock
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import ScalarResult, Select
from sqlalchemy.ext.asyncio import AsyncSession

TURN_SECONDS = 0.005
"""The length of a turn, which ends at the next `yield`."""

ROWS_PER_FETCH = 20
"""Rows of which SQLAlchemy makes objects in one step."""

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]


async def take_turns(steps: Steps[T]) -> T:
    """Run a computation in turns and return its result.

    In each iteration of the loop those that begin have together about TURN_SECONDS, so that a short
    computation does not wait for long ones; of those that go on, only one has its turn.
    """
    schedule = _get_schedule()
    try:
        while schedule.begun_seconds >= TURN_SECONDS:  # noqa: ASYNC110  # each iteration resets it
            await asyncio.sleep(0)
        with schedule.measure_beginning():
            _run_turn(steps)
        while True:
            async with schedule.going_on:
                await asyncio.sleep(0)
                _run_turn(steps)
    except _Finished as finished:
        result: T = finished.args[0]
        return result
    finally:
        steps.close()


class _Schedule:
    """The turns on one event loop.

    `begun_seconds` is the time that first turns have taken in this iteration of the loop, and
    `going_on` is held by the one computation that has a later turn.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self.begun_seconds = 0.0
        self.going_on = Lock()

    @contextmanager
    def measure_beginning(self) -> Iterator[None]:
        if not self.begun_seconds:
            self._call_soon(self._begin_iteration)
        began_at = perf_counter()
        try:
            yield
        finally:
            self.begun_seconds += perf_counter() - began_at

    def _begin_iteration(self) -> None:
        self.begun_seconds = 0.0


_schedules: WeakKeyDictionary[AbstractEventLoop, _Schedule] = WeakKeyDictionary()


def _get_schedule() -> _Schedule:
    loop = asyncio.get_running_loop()
    schedule = _schedules.get(loop)
    if schedule is None:
        schedule = _schedules[loop] = _Schedule(loop)
    return schedule


class _Finished(Exception):
    """The end of a computation, with its result."""


def _run_turn(steps: Steps[object]) -> None:
    """Run one turn. Raises: _Finished."""
    ends_at = perf_counter() + TURN_SECONDS
    try:
        while perf_counter() < ends_at:
            next(steps)
    except StopIteration as end:
        raise _Finished(end.value) from None


async def read_rows(session: AsyncSession, statement: Select[T]) -> list[T]:
    """Return the rows of one entity, whose objects are made in turns."""
    rows: ScalarResult[T] = await session.scalars(statement)
    return await take_turns(collect(rows.yield_per(ROWS_PER_FETCH)))


def run_to_end(steps: Steps[T]) -> T:
    """Run a computation without a pause and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def collect(items: Iterable[T]) -> Steps[list[T]]:
    """Return the items of a lazy iterable, each produced in one step."""
    collected: list[T] = []
    for item in items:
        collected.append(item)
        yield
    return collected
