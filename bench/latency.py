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
from bench.results import Row, Target
from bench.status_changes import Changes, follow, followed, revision_of
from bench.websocket_client import Socket, in_turns
from db.core.database import Database
from db.registry.status_changes import CHANNEL

_PACE_SECONDS = (0.01, 0.02)
_ARRIVAL_SECONDS = 10


class _Arrivals:
    """When each revision came: to the bare listener, and to the last of the subscribers."""

    def __init__(self) -> None:
        self.at_listener: dict[int, float] = {}
        self.at_sockets: dict[int, float] = {}

    def on_notification(self, *said: object) -> None:
        self.at_listener[int(str(said[-1]))] = time.perf_counter()

    def on_message(self, message: bytes) -> None:
        revision = revision_of(message)
        if revision is not None:
            self.at_sockets[revision] = time.perf_counter()


@dataclass(frozen=True, slots=True)
class _Delays:
    """Of the changes of one run, in ms."""

    at_sockets: list[float]
    at_listener: list[float]


async def latency(*, quick: bool) -> AsyncIterator[Row]:
    parts = ((1, 5, 1), (5, 5, 1)) if quick else ((1, 200, 3), (300, 100, 3))
    async with processes.database() as database, processes.registry(database.url) as registry:
        written = await Changes.of(database)
        for subscribers, changes, runs in parts:
            arrivals = _Arrivals()
            async with _listening(database, arrivals):
                connect = partial(follow, registry.port, arrivals.on_message)
                followers = await in_turns(subscribers, connect)
                await followed(registry.port, subscribers)
                run = partial(_run, written, followers, arrivals, changes)
                await run(durable=True)
                durable = [await run(durable=True) for _ in range(runs)]
                fleeting = [await run(durable=False) for _ in range(runs)]
                for socket in followers:
                    socket.close()
            if subscribers == 1:
                yield _row("commit to socket, p50", durable, median, Target("ratio", "at most", 3))
                yield _row("commit to socket, p99", durable, _p99)
                yield _row("commit to socket, p50, synchronous_commit off", fleeting, median)
            else:
                yield _row(f"commit to the last of {subscribers} sockets, p50", durable, median)
                yield _row(f"commit to the last of {subscribers} sockets, p99", durable, _p99)


async def _run(
    written: Changes,
    followers: Sequence[Socket],
    arrivals: _Arrivals,
    changes: int,
    *,
    durable: bool,
) -> _Delays:
    for socket in followers:
        socket.expect(changes)
    committed = {}
    for _ in range(changes):
        revision, at = await written.commit_one(durable=durable)
        committed[revision] = at
        await asyncio.sleep(random.uniform(*_PACE_SECONDS))  # noqa: S311  # no secret
    async with asyncio.timeout(_ARRIVAL_SECONDS):
        for socket in followers:
            await socket.all_come()
    return _Delays(
        [1000 * (arrivals.at_sockets[revision] - at) for revision, at in committed.items()],
        [1000 * (arrivals.at_listener[revision] - at) for revision, at in committed.items()],
    )


@asynccontextmanager
async def _listening(database: Database, arrivals: _Arrivals) -> AsyncIterator[None]:
    connection = await database.listening_connection()
    try:
        await connection.add_listener(CHANNEL, arrivals.on_notification)
        yield
    finally:
        connection.terminate()


def _row(
    name: str,
    runs: Sequence[_Delays],
    part: Callable[[list[float]], float],
    target: Target | None = None,
) -> Row:
    return Row(
        name,
        "ms",
        [part(run.at_sockets) for run in runs],
        "bare asyncpg LISTEN, same commit",
        [part(run.at_listener) for run in runs],
        target,
    )


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
