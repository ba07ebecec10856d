"""How much memory an idle subscriber, and a node, cost the server's process.

Each subscriber has its own connection, and its limit is a bare websocket connection. On both sides
the connections of a warm-up stay open, so that memory allocated once, or freed and reused, does not
count, and each connection has received one message. Likewise each node has sent heartbeats and has
been queried.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import cycle

from sqlalchemy import text

from bench import processes
from bench.closed_loop import Load
from bench.heartbeat_load import GATEWAY_CONNECTIONS, encode_batch_posts, generate_heartbeats
from bench.http_connection import encode_operation, encode_post, open_http_connection
from bench.nodes import insert_nodes
from bench.processes import Server
from bench.results import Result, Target
from bench.status_changes import ChangeWriter, subscribe, wait_for_subscribers
from bench.websocket_client import WebSocketClient, connect, repeat_in_batches
from db.core.database import Database

_AVAILABLE_NODES = encode_post(
    "/graphql", encode_operation("{ availableNodes(limit: 10) { revision } }")
)

SendMessages = Callable[[list[WebSocketClient]], Awaitable[None]]
"""Makes the server send one message to each of its clients, and waits for them."""


async def measure_memory(*, quick: bool) -> AsyncIterator[Result]:
    subscriber_count, warm_up_count, run_count = (5, 2, 1) if quick else (2000, 300, 2)
    measure = partial(_measure_subscriber_memory, warm_up_count, subscriber_count)
    figures, limits = [], []
    async with processes.open_database() as database:
        writer = await ChangeWriter.for_node(database)
        for _ in range(run_count):
            async with processes.run_registry(database.url) as server:
                publish = partial(_publish_change, server, writer)
                figures.append(await measure(server, partial(subscribe, server.port), publish))
            async with processes.run_echo_server() as server:
                open_client = partial(connect, server.port, "/repeat")
                limits.append(await measure(server, open_client, _request_message))
    yield Result(
        f"memory per idle subscriber, {subscriber_count:,} of them",
        "kB",
        figures,
        "bare Starlette websocket",
        limits,
        Target("figure", "at most", 60),
    )
    yield await _measure_node_memory(quick=quick)


async def _measure_node_memory(*, quick: bool) -> Result:
    """Measure a registry that has heard from each node and has answered availableNodes.

    As many nodes are there before the measurement, and fill the part of the change log that the
    process keeps in memory.
    """
    node_count, seconds = (100, 0.1) if quick else (10_000, 1)
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url, listen_check_seconds=1) as server,
    ):
        await insert_nodes(database, node_count)
        await _send_traffic(server, node_count, seconds)
        bytes_before = server.resident_bytes
        await insert_nodes(database, node_count, first=node_count)
        await _send_traffic(server, 2 * node_count, seconds)
        growth = server.resident_bytes - bytes_before
        row_bytes = await _measure_row_bytes(database)
    return Result(
        f"memory per node, {node_count:,} of them",
        "kB",
        [growth / node_count / 1000],
        "its row in the database",
        [row_bytes / 1000],
        Target("figure", "at most", 2),
    )


async def _measure_row_bytes(database: Database) -> float:
    async with database.read() as session:
        return float(await session.scalar(text("SELECT avg(pg_column_size(n)) FROM nodes n")) or 0)


async def _measure_subscriber_memory(
    warm_up_count: int,
    subscriber_count: int,
    server: Server,
    open_client: Callable[[], Awaitable[WebSocketClient]],
    send_messages: SendMessages,
) -> float:
    """Return the resident memory of the server for each client, in kB."""
    clients = await repeat_in_batches(warm_up_count, open_client)
    await send_messages(clients)
    bytes_before = server.resident_bytes
    clients += await repeat_in_batches(subscriber_count, open_client)
    await send_messages(clients)
    growth = server.resident_bytes - bytes_before
    for client in clients:
        client.close()
    return growth / subscriber_count / 1000


async def _send_traffic(server: Server, node_count: int, seconds: float) -> None:
    """Send several heartbeats of each node, then query the available nodes."""
    batch_posts = encode_batch_posts(generate_heartbeats(node_count))
    await Load(open_http_connection, server, batch_posts, GATEWAY_CONNECTIONS).run(3 * seconds)
    await Load(open_http_connection, server, cycle([_AVAILABLE_NODES])).run(seconds)


async def _publish_change(
    server: Server, writer: ChangeWriter, clients: list[WebSocketClient]
) -> None:
    await wait_for_subscribers(server.port, len(clients))
    for client in clients:
        client.expect(1)
    await writer.write(1)
    for client in clients:
        await client.wait_for_messages()


async def _request_message(clients: list[WebSocketClient]) -> None:
    for client in clients:
        client.expect(1)
        client.send("1")
        client.send("any text")
    for client in clients:
        await client.wait_for_messages()
