"""How many messages a second one process sends to subscribers of the same stream.

The limit sends the same bytes, on each connection from a loop that does nothing else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench import processes
from bench.processes import CpuMeter, CpuUsage, Server, describe_cpu_usage
from bench.results import Result, Target
from bench.status_changes import ChangeWriter, subscribe, wait_for_subscribers
from bench.websocket_client import WebSocketClient, connect, repeat_in_batches


@dataclass(frozen=True, slots=True)
class _Run:
    """Messages a second, from the first arrival to the last, and the CPU use meanwhile."""

    rate: float
    cpu: CpuUsage


async def measure_fan_out(*, quick: bool) -> AsyncIterator[Result]:
    subscriber_count, change_count, run_count = (5, 20, 1) if quick else (300, 1000, 3)
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url) as registry,
        processes.run_echo_server() as echo_server,
    ):
        writer = await ChangeWriter.for_node(database)
        subscribers = await repeat_in_batches(subscriber_count, partial(subscribe, registry.port))
        await wait_for_subscribers(registry.port, subscriber_count)
        repeaters = await repeat_in_batches(
            subscriber_count, partial(connect, echo_server.port, "/repeat")
        )
        figures, limits = [], []
        for _ in range(1 + run_count):  # the first run is the warm-up
            write_changes = partial(writer.write, change_count)
            figures.append(await _measure_run(registry, subscribers, change_count, write_changes))
            text = subscribers[0].last_message.decode()
            request = partial(_request_repeats, repeaters, change_count, text)
            limits.append(await _measure_run(echo_server, repeaters, change_count, request))
        for client in subscribers + repeaters:
            client.close()
    yield Result(
        f"fan-out to {subscriber_count} subscribers",
        "messages/s",
        [run.rate for run in figures[1:]],
        "bare Starlette websocket, same bytes",
        [run.rate for run in limits[1:]],
        Target("ratio", "at least", 0.6),
        f"{len(text)} bytes each;"
        f" registry: {describe_cpu_usage([run.cpu for run in figures[1:]])};"
        f" limit: {describe_cpu_usage([run.cpu for run in limits[1:]])}",
    )


async def _request_repeats(repeaters: Sequence[WebSocketClient], count: int, text: str) -> None:
    for client in repeaters:
        client.send(str(count))
        client.send(text)


async def _measure_run(
    server: Server,
    clients: Sequence[WebSocketClient],
    message_count: int,
    begin: Callable[[], Awaitable[None]],
) -> _Run:
    """Call `begin` and wait until each client got `message_count` messages."""
    for client in clients:
        client.expect(message_count)
    cpu_meter = CpuMeter(server)
    await asyncio.gather(begin(), *(client.wait_for_messages() for client in clients))
    cpu = cpu_meter.read()
    first = min(client.first_at for client in clients)
    last = max(client.last_at for client in clients)
    return _Run(message_count * len(clients) / (last - first), cpu)
