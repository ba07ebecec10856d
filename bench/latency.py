"""How long after a commit its change is at the sockets of all subscribers.

The limit is a bare asyncpg listener that is notified of the same commit. Both arrive in one event
loop and count from the moment before COMMIT is sent, so the commit itself, with its fsync, is on
both sides; where it is not durable the way alone is left.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench import processes
from bench.results import Result, Target
from bench.status_changes import ChangeWriter, find_revision, subscribe, wait_for_subscribers
from bench.websocket_client import WebSocketClient, repeat_in_batches
from db.core.database import Database
from db.registry.status_changes import CHANNEL

_PAUSE_SECONDS = (0.01, 0.02)
_ARRIVAL_TIMEOUT_SECONDS = 10


class _Arrivals:
    """When each revision came: to the bare listener, and to the last of the subscribers."""

    def __init__(self) -> None:
        self.at_listener: dict[int, float] = {}
        self.at_sockets: dict[int, float] = {}

    def on_notification(self, *said: object) -> None:
        self.at_listener[int(str(said[-1]))] = time.perf_counter()

    def on_message(self, message: bytes) -> None:
        revision = find_revision(message)
        if revision is not None:
            self.at_sockets[revision] = time.perf_counter()


@dataclass(frozen=True, slots=True)
class _Delays:
    """Of the changes of one run, in ms."""

    at_sockets: list[float]
    at_listener: list[float]


async def measure_latency(*, quick: bool) -> AsyncIterator[Result]:
    parts = ((1, 5, 1), (5, 5, 1)) if quick else ((1, 200, 3), (300, 100, 3))
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url) as registry,
    ):
        written = await ChangeWriter.for_node(database)
        for subscribers, changes, runs in parts:
            arrivals = _Arrivals()
            async with _open_listener(database, arrivals):
                connect = partial(subscribe, registry.port, arrivals.on_message)
                followers = await repeat_in_batches(subscribers, connect)
                await wait_for_subscribers(registry.port, subscribers)
                run = partial(_measure_delays, written, followers, arrivals, changes)
                await run(durable=True)
                durable = [await run(durable=True) for _ in range(runs)]
                fleeting = [await run(durable=False) for _ in range(runs)]
                for socket in followers:
                    socket.close()
            if subscribers == 1:
                yield _build_result(
                    "commit to socket, p50", durable, median, Target("ratio", "at most", 3)
                )
                yield _build_result("commit to socket, p99", durable, _compute_p99)
                yield _build_result(
                    "commit to socket, p50, synchronous_commit off", fleeting, median
                )
            else:
                yield _build_result(
                    f"commit to the last of {subscribers} sockets, p50", durable, median
                )
                yield _build_result(
                    f"commit to the last of {subscribers} sockets, p99", durable, _compute_p99
                )


async def _measure_delays(
    written: ChangeWriter,
    followers: Sequence[WebSocketClient],
    arrivals: _Arrivals,
    changes: int,
    *,
    durable: bool,
) -> _Delays:
    for socket in followers:
        socket.expect(changes)
    committed = {}
    for _ in range(changes):
        revision, at = await written.commit_change(durable=durable)
        committed[revision] = at
        await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311  # no secret
    async with asyncio.timeout(_ARRIVAL_TIMEOUT_SECONDS):
        for socket in followers:
            await socket.wait_for_messages()
    return _Delays(
        [1000 * (arrivals.at_sockets[revision] - at) for revision, at in committed.items()],
        [1000 * (arrivals.at_listener[revision] - at) for revision, at in committed.items()],
    )


@asynccontextmanager
async def _open_listener(database: Database, arrivals: _Arrivals) -> AsyncIterator[None]:
    connection = await database.connect_to_listen()
    try:
        await connection.add_listener(CHANNEL, arrivals.on_notification)
        yield
    finally:
        connection.terminate()


def _build_result(
    name: str,
    runs: Sequence[_Delays],
    part: Callable[[list[float]], float],
    target: Target | None = None,
) -> Result:
    return Result(
        name,
        "ms",
        [part(run.at_sockets) for run in runs],
        "bare asyncpg LISTEN, same commit",
        [part(run.at_listener) for run in runs],
        target,
    )


def _compute_p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
