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
from bench.processes import LOAD_GENERATOR, Server
from bench.results import Result, Target
from bench.status_changes import ChangeWriter, subscribe, wait_for_subscribers
from bench.websocket_client import WebSocketClient, connect, repeat_in_batches


@dataclass(frozen=True, slots=True)
class _Run:
    """Messages a second, from the first that came to the last; parts of a core, 0 to 1."""

    rate: float
    server_busy: float
    load_busy: float


async def measure_fan_out(*, quick: bool) -> AsyncIterator[Result]:
    subscribers, changes, runs = (5, 20, 1) if quick else (300, 1000, 3)
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url) as registry,
        processes.run_echo_server() as bare,
    ):
        written = await ChangeWriter.for_node(database)
        followers = await repeat_in_batches(subscribers, partial(subscribe, registry.port))
        await wait_for_subscribers(registry.port, subscribers)
        repeaters = await repeat_in_batches(subscribers, partial(connect, bare.port, "/repeat"))
        figures, limits = [], []
        for _ in range(1 + runs):
            write = partial(written.write, changes)
            figures.append(await _measure_run(registry, followers, changes, write))
            text = followers[0].last_message.decode()
            ask = partial(_request_repeats, repeaters, changes, text)
            limits.append(await _measure_run(bare, repeaters, changes, ask))
        for socket in followers + repeaters:
            socket.close()
    yield Result(
        f"fan-out to {subscribers} subscribers",
        "messages/s",
        [run.rate for run in figures[1:]],
        "bare Starlette websocket, same bytes",
        [run.rate for run in limits[1:]],
        Target("ratio", "at least", 0.6),
        f"{len(text)} bytes each; registry {_describe_cpu_usage(figures[1:])};"
        f" limit {_describe_cpu_usage(limits[1:])}",
    )


async def _request_repeats(repeaters: Sequence[WebSocketClient], count: int, text: str) -> None:
    for socket in repeaters:
        socket.send(str(count))
        socket.send(text)


async def _measure_run(
    server: Server,
    sockets: Sequence[WebSocketClient],
    each: int,
    begin: Callable[[], Awaitable[None]],
) -> _Run:
    for socket in sockets:
        socket.expect(each)
    before = time.perf_counter(), server.cpu_seconds, LOAD_GENERATOR.cpu_seconds
    await asyncio.gather(begin(), *(socket.wait_for_messages() for socket in sockets))
    wall, server_cpu, load_cpu = (
        now - then
        for now, then in zip(
            (time.perf_counter(), server.cpu_seconds, LOAD_GENERATOR.cpu_seconds),
            before,
            strict=True,
        )
    )
    first = min(socket.first_at for socket in sockets)
    last = max(socket.last_at for socket in sockets)
    return _Run(each * len(sockets) / (last - first), server_cpu / wall, load_cpu / wall)


def _describe_cpu_usage(runs: Sequence[_Run]) -> str:
    server, load = median(run.server_busy for run in runs), median(run.load_busy for run in runs)
    return f"server {server:.0%} busy, load {load:.0%}"
