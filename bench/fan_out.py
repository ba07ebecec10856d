"""How many messages a second one process sends to subscribers that are alike.

The limit sends the same bytes, on each connection from a loop that does nothing else.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench import processes
from bench.processes import LOAD, Server
from bench.results import Row, Target
from bench.status_changes import Changes, follow, followed
from bench.websocket_client import Socket, dial, in_turns


@dataclass(frozen=True, slots=True)
class _Run:
    """Messages a second, from the first that came to the last; parts of a core, 0 to 1."""

    rate: float
    server_busy: float
    load_busy: float


async def fan_out(*, quick: bool) -> AsyncIterator[Row]:
    subscribers, changes, runs = (5, 20, 1) if quick else (300, 1000, 3)
    async with (
        processes.database() as database,
        processes.registry(database.url) as registry,
        processes.bare() as bare,
    ):
        written = await Changes.of(database)
        followers = await in_turns(subscribers, partial(follow, registry.port))
        await followed(registry.port, subscribers)
        repeaters = await in_turns(subscribers, partial(dial, bare.port, "/repeat"))
        figures, limits = [], []
        for _ in range(1 + runs):
            write = partial(written.write, changes)
            figures.append(await _run(registry, followers, changes, write))
            text = followers[0].last_message.decode()
            ask = partial(_ask, repeaters, changes, text)
            limits.append(await _run(bare, repeaters, changes, ask))
        for socket in followers + repeaters:
            socket.close()
    yield Row(
        f"fan-out to {subscribers} subscribers",
        "messages/s",
        [run.rate for run in figures[1:]],
        "bare Starlette websocket, same bytes",
        [run.rate for run in limits[1:]],
        Target("ratio", "at least", 0.6),
        f"{len(text)} bytes each; registry {_busy(figures[1:])}; limit {_busy(limits[1:])}",
    )


async def _ask(repeaters: Sequence[Socket], count: int, text: str) -> None:
    for socket in repeaters:
        socket.send(str(count))
        socket.send(text)


async def _run(
    server: Server, sockets: Sequence[Socket], each: int, begin: Callable[[], Awaitable[None]]
) -> _Run:
    for socket in sockets:
        socket.expect(each)
    before = time.perf_counter(), server.cpu_seconds, LOAD.cpu_seconds
    await asyncio.gather(begin(), *(socket.all_come() for socket in sockets))
    wall, server_cpu, load_cpu = (
        now - then
        for now, then in zip(
            (time.perf_counter(), server.cpu_seconds, LOAD.cpu_seconds), before, strict=True
        )
    )
    first = min(socket.first_at for socket in sockets)
    last = max(socket.last_at for socket in sockets)
    return _Run(each * len(sockets) / (last - first), server_cpu / wall, load_cpu / wall)


def _busy(runs: Sequence[_Run]) -> str:
    server, load = median(run.server_busy for run in runs), median(run.load_busy for run in runs)
    return f"server {server:.0%} busy, load {load:.0%}"
