"""What an idle subscriber costs the server's process, each on a connection of its own.

The limit is a bare websocket connection. On both sides connections of a warm-up stay open, so that
what is paid once, or freed and used again, does not count; and each has got one message.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from bench import stage
from bench.rows import Row, Target
from bench.sockets import Socket, dial, in_turns
from bench.stage import Server
from bench.traffic import Changes, follow, followed

Arouse = Callable[[list[Socket]], Awaitable[None]]


async def memory(*, quick: bool) -> AsyncIterator[Row]:
    subscribers, warm_up, runs = (5, 2, 1) if quick else (2000, 300, 2)
    figures, limits = [], []
    async with stage.database() as database:
        written = await Changes.of(database)
        for _ in range(runs):
            async with stage.registry(database.url) as server:
                arouse = partial(_tell, server, written)
                connect = partial(follow, server.port)
                figures.append(await _each(server, connect, arouse, warm_up, subscribers))
            async with stage.bare() as server:
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
