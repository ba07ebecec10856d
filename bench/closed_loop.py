"""Closed-loop load: each connection sends its next request once the last one was answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from bench.processes import CpuMeter, CpuUsage, Server

CONNECTIONS = 32
_SETTLE_SECONDS = 0.2
_ANSWER_TIMEOUT_SECONDS = 30

RequestT = TypeVar("RequestT")


class Connection(Protocol):
    """A connection that sends requests by itself.

    `failure` is empty, or what arrived instead of an answer.
    """

    answer_count: int
    last_answer: bytes

    @property
    def failure(self) -> str: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Load(Generic[RequestT]):
    """A number of connections to one server that share one stream of requests.

    `open_connection` opens each of them, given the server's port and the requests.
    """

    open_connection: Callable[[int, Iterator[RequestT]], Awaitable[Connection]]
    server: Server
    requests: Iterator[RequestT]
    connections: int = CONNECTIONS

    async def run(self, seconds: float) -> "LoadResult":
        """Run the load for some seconds, and longer until there is at least one answer.

        Raises: TimeoutError: there is still no answer after another 30 seconds; ConnectionError:
        something other than an answer arrived.
        """
        async with self._open_connections() as connections:
            await asyncio.sleep(min(_SETTLE_SECONDS, seconds))
            count_before, start = _count_answers(connections), time.perf_counter()
            cpu_meter = CpuMeter(self.server)
            await asyncio.sleep(seconds)
            async with asyncio.timeout(_ANSWER_TIMEOUT_SECONDS):
                while (count := _count_answers(connections) - count_before) == 0:
                    await asyncio.sleep(seconds)
            duration, cpu = time.perf_counter() - start, cpu_meter.read()
        return LoadResult(
            count / duration, _count_answers(connections), connections[0].last_answer, cpu
        )

    @asynccontextmanager
    async def _open_connections(self) -> AsyncIterator[list[Connection]]:
        connections: list[Connection] = []
        try:
            while len(connections) < self.connections:
                connections.append(await self.open_connection(self.server.port, self.requests))
            yield connections
        finally:
            for connection in connections:
                connection.stop()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one run of a load measured.

    `rate` is in answers a second and covers the measured time; `answer_count` covers all answers
    since the connections were opened.
    """

    rate: float
    answer_count: int
    sample_answer: bytes
    cpu: CpuUsage


def _count_answers(connections: Sequence[Connection]) -> int:
    for connection in connections:
        if connection.failure:
            raise ConnectionError(connection.failure)
    return sum(connection.answer_count for connection in connections)
