"""Load on connections of which each sends its next request once the one before was answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Generic, Protocol, TypeVar

from bench.processes import CpuMeter, CpuUsage, Server

CONNECTIONS = 32
_SETTLE_SECONDS = 0.2
_ANSWER_TIMEOUT_SECONDS = 30

RequestT = TypeVar("RequestT")


class Connection(Protocol):
    """`answers` counts them, `answer` is the last; `failure` is what came instead of the next."""

    answer_count: int
    last_answer: bytes

    @property
    def failure(self) -> str: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Load(Generic[RequestT]):
    """So many connections to a server, opened by `dial`, that share the requests."""

    open_connection: Callable[[int, Iterator[RequestT]], Awaitable[Connection]]
    server: Server
    requests: Iterator[RequestT]
    connections: int = CONNECTIONS

    async def run(self, seconds: float) -> "LoadResult":
        """Takes longer where nothing is answered. Raises TimeoutError where that lasts, and
        ConnectionError for what is no answer.
        """
        async with self._open_connections() as opened:
            await asyncio.sleep(min(_SETTLE_SECONDS, seconds))
            before, began = _count_answers(opened), time.perf_counter()
            stopwatch = CpuMeter(self.server)
            await asyncio.sleep(seconds)
            async with asyncio.timeout(_ANSWER_TIMEOUT_SECONDS):
                while (answered := _count_answers(opened) - before) == 0:
                    await asyncio.sleep(seconds)
            taken, busy = time.perf_counter() - began, stopwatch.read()
        return LoadResult(answered / taken, _count_answers(opened), opened[0].last_answer, busy)

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[list[Connection]]:
        opened: list[Connection] = []
        try:
            while len(opened) < self.connections:
                opened.append(await self.open_connection(self.server.port, self.requests))
            yield opened
        finally:
            for connection in opened:
                connection.stop()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Answers a second, all that came, one of them, and how busy everyone was meanwhile."""

    rate: float
    answer_count: int
    sample_answer: bytes
    cpu: CpuUsage


def describe_cpu_usage(runs: Sequence[LoadResult]) -> str:
    """What was busy, as the median of the runs has it."""
    server, load, others = (
        median(getattr(run.cpu, who) for run in runs) for who in ("server", "load", "others")
    )
    return f"server {server:.0%} of a core, load {load:.0%}, PostgreSQL and others {others:.0%}"


def _count_answers(connections: Sequence[Connection]) -> int:
    for connection in connections:
        if connection.failure:
            raise ConnectionError(connection.failure)
    return sum(connection.answer_count for connection in connections)
