"""How long after a commit its change has reached the sockets of all subscribers.

The limit is a bare asyncpg listener that is notified of the same commit. Both arrive in one event
loop, and both times start just before COMMIT is sent, so each includes the commit with its fsync.
With synchronous_commit off only the delivery remains.
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
    """When each revision reached the bare listener, and the last of the subscribers."""

    def __init__(self) -> None:
        self.at_listener: dict[int, float] = {}
        self.at_sockets: dict[int, float] = {}

    def on_notification(self, *arguments: object) -> None:
        self.at_listener[int(str(arguments[-1]))] = time.perf_counter()

    def on_message(self, message: bytes) -> None:
        revision = find_revision(message)
        if revision is not None:
            self.at_sockets[revision] = time.perf_counter()


@dataclass(frozen=True, slots=True)
class _Delays:
    """The delays of the changes of one run, in ms."""

    at_sockets: list[float]
    at_listener: list[float]


async def measure_latency(*, quick: bool) -> AsyncIterator[Result]:
    parts = ((1, 5, 1), (5, 5, 1)) if quick else ((1, 200, 3), (300, 100, 3))
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url) as registry,
    ):
        writer = await ChangeWriter.for_node(database)
        for subscriber_count, change_count, run_count in parts:
            arrivals = _Arrivals()
            async with _open_listener(database, arrivals):
                open_subscriber = partial(subscribe, registry.port, arrivals.on_message)
                subscribers = await repeat_in_batches(subscriber_count, open_subscriber)
                await wait_for_subscribers(registry.port, subscriber_count)
                measure = partial(_measure_delays, writer, subscribers, arrivals, change_count)
                await measure(durable=True)  # the warm-up
                durable = [await measure(durable=True) for _ in range(run_count)]
                not_durable = [await measure(durable=False) for _ in range(run_count)]
                for client in subscribers:
                    client.close()
            if subscriber_count == 1:
                yield _build_result(
                    "commit to socket, p50", durable, median, Target("ratio", "at most", 3)
                )
                yield _build_result("commit to socket, p99", durable, _compute_p99)
                yield _build_result(
                    "commit to socket, p50, synchronous_commit off", not_durable, median
                )
            else:
                name = f"commit to the last of {subscriber_count} sockets"
                yield _build_result(f"{name}, p50", durable, median)
                yield _build_result(f"{name}, p99", durable, _compute_p99)


async def _measure_delays(
    writer: ChangeWriter,
    subscribers: Sequence[WebSocketClient],
    arrivals: _Arrivals,
    change_count: int,
    *,
    durable: bool,
) -> _Delays:
    for client in subscribers:
        client.expect(change_count)
    committed_at = {}
    for _ in range(change_count):
        revision, moment = await writer.commit_change(durable=durable)
        committed_at[revision] = moment
        await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))  # noqa: S311  # not a secret
    async with asyncio.timeout(_ARRIVAL_TIMEOUT_SECONDS):
        for client in subscribers:
            await client.wait_for_messages()
    return _Delays(
        [1000 * (arrivals.at_sockets[r] - moment) for r, moment in committed_at.items()],
        [1000 * (arrivals.at_listener[r] - moment) for r, moment in committed_at.items()],
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
    summarize: Callable[[list[float]], float],
    target: Target | None = None,
) -> Result:
    return Result(
        name,
        "ms",
        [summarize(run.at_sockets) for run in runs],
        "bare asyncpg LISTEN, same commit",
        [summarize(run.at_listener) for run in runs],
        target,
    )


def _compute_p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]
