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
from bench.discovery import asked
from bench.heartbeat_load import GATEWAYS, beats, calls
from bench.nodes import settle
from bench.processes import Server
from bench.results import Row, Target
from bench.status_changes import Changes, follow, followed
from bench.websocket_client import Socket, dial, in_turns
from db.core.database import Database

_ASK = http_connection.post("/graphql", asked("{ availableNodes(limit: 10) { revision } }"))

Arouse = Callable[[list[Socket]], Awaitable[None]]


async def memory(*, quick: bool) -> AsyncIterator[Row]:
    subscribers, warm_up, runs = (5, 2, 1) if quick else (2000, 300, 2)
    figures, limits = [], []
    async with processes.database() as database:
        written = await Changes.of(database)
        for _ in range(runs):
            async with processes.registry(database.url) as server:
                arouse = partial(_tell, server, written)
                connect = partial(follow, server.port)
                figures.append(await _each(server, connect, arouse, warm_up, subscribers))
            async with processes.bare() as server:
                connect = partial(dial, server.port, "/repeat")
                limits.append(await _each(server, connect, _ask, warm_up, subscribers))
    yield Row(
        f"memory per idle subscriber, {subscribers:,} of them",
        "kB",
        figures,
        "bare Starlette websocket",
        limits,
        Target("figure", "at most", 60),
    )
    yield await _per_node(quick=quick)


async def _per_node(*, quick: bool) -> Row:
    """Of a registry that has heard each, and was asked which are available.

    As many came before: by them all that is kept of the change log is full.
    """
    nodes, seconds = (100, 0.1) if quick else (10_000, 1)
    async with (
        processes.database() as database,
        processes.registry(database.url, listen_check_seconds=1) as server,
    ):
        await settle(database, nodes)
        await _make_known(server, nodes, seconds)
        before = server.resident_bytes
        await settle(database, nodes, first=nodes)
        await _make_known(server, 2 * nodes, seconds)
        grown = server.resident_bytes - before
        row = await _row_bytes(database)
    return Row(
        f"memory per node, {nodes:,} of them",
        "kB",
        [grown / nodes / 1000],
        "its row in the database",
        [row / 1000],
        Target("figure", "at most", 2),
    )


async def _row_bytes(database: Database) -> float:
    async with database.read() as session:
        return float(await session.scalar(text("SELECT avg(pg_column_size(n)) FROM nodes n")) or 0)


async def _each(
    server: Server,
    connect: Callable[[], Awaitable[Socket]],
    arouse: Arouse,
    warm_up: int,
    subscribers: int,
) -> float:
    """In kB of resident memory."""
    sockets = await in_turns(warm_up, connect)
    await arouse(sockets)
    before = server.resident_bytes
    sockets += await in_turns(subscribers, connect)
    await arouse(sockets)
    grown = server.resident_bytes - before
    for socket in sockets:
        socket.close()
    return grown / subscribers / 1000


async def _make_known(server: Server, nodes: int, seconds: float) -> None:
    """All are heard several times, and asked for."""
    await Load(http_connection.dial, server, calls(beats(nodes)), GATEWAYS).run(3 * seconds)
    await Load(http_connection.dial, server, cycle([_ASK])).run(seconds)


async def _tell(server: Server, written: Changes, sockets: list[Socket]) -> None:
    await followed(server.port, len(sockets))
    for socket in sockets:
        socket.expect(1)
    await written.write(1)
    for socket in sockets:
        await socket.all_come()


async def _ask(sockets: list[Socket]) -> None:
    for socket in sockets:
        socket.expect(1)
        socket.send("1")
        socket.send("as good as any")
    for socket in sockets:
        await socket.all_come()
