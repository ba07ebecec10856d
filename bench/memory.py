"""What an idle subscriber, and a node, cost the server's process.

Each subscriber has a connection of its own, and its limit is a bare websocket connection. On both
sides connections of a warm-up stay open, so that what is paid once, or freed and used again, does
not count; and each has got one message. So it is with nodes: all have been heard and asked for.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import cycle

from sqlalchemy import text

from bench import http_connection, processes
from bench.closed_loop import Load
from bench.discovery import encode_operation
from bench.heartbeat_load import GATEWAY_CONNECTIONS, encode_batch_posts, generate_heartbeats
from bench.nodes import insert_nodes
from bench.processes import Server
from bench.results import Result, Target
from bench.status_changes import ChangeWriter, subscribe, wait_for_subscribers
from bench.websocket_client import WebSocketClient, connect, repeat_in_batches
from db.core.database import Database

_AVAILABLE_NODES = http_connection.encode_post(
    "/graphql", encode_operation("{ availableNodes(limit: 10) { revision } }")
)

SendMessages = Callable[[list[WebSocketClient]], Awaitable[None]]


async def measure_memory(*, quick: bool) -> AsyncIterator[Result]:
    subscribers, warm_up, runs = (5, 2, 1) if quick else (2000, 300, 2)
    figures, limits = [], []
    async with processes.open_database() as database:
        written = await ChangeWriter.for_node(database)
        for _ in range(runs):
            async with processes.run_registry(database.url) as server:
                arouse = partial(_publish_change, server, written)
                open_client = partial(subscribe, server.port)
                figures.append(
                    await _measure_subscriber_memory(
                        server, open_client, arouse, warm_up, subscribers
                    )
                )
            async with processes.run_echo_server() as server:
                open_client = partial(connect, server.port, "/repeat")
                limits.append(
                    await _measure_subscriber_memory(
                        server, open_client, _request_message, warm_up, subscribers
                    )
                )
    yield Result(
        f"memory per idle subscriber, {subscribers:,} of them",
        "kB",
        figures,
        "bare Starlette websocket",
        limits,
        Target("figure", "at most", 60),
    )
    yield await _measure_node_memory(quick=quick)


async def _measure_node_memory(*, quick: bool) -> Result:
    """Of a registry that has heard each, and was asked which are available.

    As many came before: by them all that is kept of the change log is full.
    """
    nodes, seconds = (100, 0.1) if quick else (10_000, 1)
    async with (
        processes.open_database() as database,
        processes.run_registry(database.url, listen_check_seconds=1) as server,
    ):
        await insert_nodes(database, nodes)
        await _send_traffic(server, nodes, seconds)
        before = server.resident_bytes
        await insert_nodes(database, nodes, first=nodes)
        await _send_traffic(server, 2 * nodes, seconds)
        grown = server.resident_bytes - before
        row = await _measure_row_bytes(database)
    return Result(
        f"memory per node, {nodes:,} of them",
        "kB",
        [grown / nodes / 1000],
        "its row in the database",
        [row / 1000],
        Target("figure", "at most", 2),
    )


async def _measure_row_bytes(database: Database) -> float:
    async with database.read() as session:
        return float(await session.scalar(text("SELECT avg(pg_column_size(n)) FROM nodes n")) or 0)


async def _measure_subscriber_memory(
    server: Server,
    open_client: Callable[[], Awaitable[WebSocketClient]],
    arouse: SendMessages,
    warm_up: int,
    subscribers: int,
) -> float:
    """In kB of resident memory."""
    sockets = await repeat_in_batches(warm_up, open_client)
    await arouse(sockets)
    before = server.resident_bytes
    sockets += await repeat_in_batches(subscribers, open_client)
    await arouse(sockets)
    grown = server.resident_bytes - before
    for socket in sockets:
        socket.close()
    return grown / subscribers / 1000


async def _send_traffic(server: Server, nodes: int, seconds: float) -> None:
    """All are heard several times, and asked for."""
    await Load(
        http_connection.open_connection,
        server,
        encode_batch_posts(generate_heartbeats(nodes)),
        GATEWAY_CONNECTIONS,
    ).run(3 * seconds)
    await Load(http_connection.open_connection, server, cycle([_AVAILABLE_NODES])).run(seconds)


async def _publish_change(
    server: Server, written: ChangeWriter, sockets: list[WebSocketClient]
) -> None:
    await wait_for_subscribers(server.port, len(sockets))
    for socket in sockets:
        socket.expect(1)
    await written.write(1)
    for socket in sockets:
        await socket.wait_for_messages()


async def _request_message(sockets: list[WebSocketClient]) -> None:
    for socket in sockets:
        socket.expect(1)
        socket.send("1")
        socket.send("as good as any")
    for socket in sockets:
        await socket.wait_for_messages()
