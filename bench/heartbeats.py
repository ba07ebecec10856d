"""How many heartbeats a second one process records, each of them on disk before its answer.

The limits are a bare Starlette route and a bare websocket that send back what they get, and what
the database does by itself. All are measured in turn, so that what slows the machine slows all.
"""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import text

from bench import http_connection, pgbench, processes, websocket_connection
from bench.closed_loop import CONNECTIONS, Load, Run, cores
from bench.heartbeat_load import A_CALL, GATEWAYS, beats, calls, keyed_posts, messages, posts
from bench.nodes import agent_keys, settle
from bench.results import Row, Target
from db.core.database import Database

A_STATEMENT = 1000
MANY = 8 * CONNECTIONS
"""Connections that keep two workers busy, though each waits for half of them alone."""


async def heartbeats(*, quick: bool) -> AsyncIterator[Row]:
    fleet, seconds, runs = (A_STATEMENT, 0.05, 1) if quick else (10_000, 1, 4)
    async with processes.database() as database, processes.bare() as bare:
        await settle(database, fleet)
        async with (
            processes.registry(database.url) as one,
            processes.registry(database.url, workers=2) as two,
            processes.registry(
                database.url, auth="required", requests_per_second=1_000_000
            ) as guarded,
            processes.recorder(database.url) as recorder,
        ):
            keys = await agent_keys(database, fleet)
            sent = beats(fleet)
            recorders = (
                Load(http_connection.dial, one, posts("/graphql", sent)),
                Load(http_connection.dial, guarded, keyed_posts("/graphql", sent, keys)),
                Load(http_connection.dial, one, posts("/graphql", sent), MANY),
                Load(http_connection.dial, two, posts("/graphql", sent), MANY),
                Load(websocket_connection.operations, one, messages(sent)),
                Load(websocket_connection.operations, recorder, messages(sent)),
                Load(http_connection.dial, one, calls(sent), GATEWAYS),
            )
            echoes = (
                Load(http_connection.dial, bare, posts("/echo", sent)),
                Load(websocket_connection.echoes, bare, messages(sent)),
            )
            rounds, alone = [], []
            for _ in range(1 + runs):
                before = await _logged(database)
                recorded = [await load.run(seconds) for load in recorders]
                _prove(recorded, await _logged(database) - before)
                rounds.append(recorded + [await load.run(seconds) for load in echoes])
                alone.append(
                    (
                        await pgbench.single_commits(database, fleet, seconds),
                        await pgbench.statements_of(A_STATEMENT, database, fleet, seconds),
                    )
                )
    # What came first was to warm up.
    http, keyed, worker, workers, sockets, least, gateways, echo, socket_echo = zip(
        *rounds[1:], strict=True
    )
    singles, statements = zip(*alone[1:], strict=True)
    unit, nodes, batches = "heartbeats/s", f"{fleet:,} nodes", f"recordHeartbeats of {A_CALL}"
    yield Row(
        f"recordHeartbeat over HTTP, {nodes}",
        unit,
        _rates(http),
        "bare JSON echo of the same body",
        _rates(echo),
        Target("ratio", "at least", 0.33),
        cores(http),
    )
    yield Row(
        f"recordHeartbeat over websockets, {nodes}",
        unit,
        _rates(sockets),
        "bare websocket echo of the same message",
        _rates(socket_echo),
        Target("ratio", "at least", 0.33),
        cores(sockets),
    )
    yield Row(
        "recordHeartbeat over websockets, beside the least it takes",
        unit,
        _rates(sockets),
        "a websocket that only commits it",
        _rates(least),
        note=cores(least),
    )
    yield Row(
        f"{batches}, {nodes}",
        unit,
        _rates(gateways, A_CALL),
        "bare JSON echo of a single one",
        _rates(echo),
        Target("ratio", "at least", 1.2),
        cores(gateways),
    )
    yield Row(
        "recordHeartbeat over HTTP, beside the database",
        unit,
        _rates(http),
        "pgbench, 32 connections, a commit each",
        singles,
    )
    yield Row(
        f"{batches}, beside the database",
        unit,
        _rates(gateways, A_CALL),
        f"pgbench, statements of {A_STATEMENT:,}",
        statements,
    )
    yield Row(
        "the server's own time for one, by agents' keys",
        "µs",
        _microseconds(keyed),
        "without authentication",
        _microseconds(http),
        Target("ratio", "at most", 1.1),
        cores(keyed),
    )
    yield Row(
        f"recordHeartbeat over HTTP, two workers, {MANY} connections",
        unit,
        _rates(workers),
        "one worker",
        _rates(worker),
        Target("ratio", "at least", 1.5),
        f"one: {cores(worker)}; two: {cores(workers)}",
    )


def _rates(runs: Sequence[Run], each: int = 1) -> list[float]:
    return [each * run.rate for run in runs]


def _microseconds(runs: Sequence[Run]) -> list[float]:
    """Of its core, for each answer: what the database or the machine take does not count."""
    return [1e6 * run.busy.server / run.rate for run in runs]


async def _logged(database: Database) -> int:
    async with database.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM heartbeat_log")) or 0)


def _prove(recorded: Sequence[Run], logged: int) -> None:
    """Raises AssertionError when not all that was acknowledged is in the database."""
    *singles, calls = recorded
    acknowledged = sum(run.answers for run in singles) + A_CALL * calls.answers
    if acknowledged > logged:
        raise AssertionError(f"{acknowledged} heartbeats were acknowledged, {logged} are logged")
