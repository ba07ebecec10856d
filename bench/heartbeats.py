"""How many heartbeats a second one process records, each of them on disk before its answer.

The limits are a bare Starlette route and a bare websocket that send back what they get, and what
the database does by itself. All are measured in turn, so that what slows the machine slows all.
"""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import text

from bench import http_connection, pgbench, processes, websocket_connection
from bench.closed_loop import CONNECTIONS, Load, LoadResult, describe_cpu_usage
from bench.heartbeat_load import (
    GATEWAY_CONNECTIONS,
    HEARTBEATS_PER_CALL,
    encode_authorized_posts,
    encode_batch_posts,
    encode_messages,
    encode_posts,
    generate_heartbeats,
)
from bench.nodes import create_agent_tokens, insert_nodes
from bench.results import Result, Target
from db.core.database import Database

STATEMENT_SIZE = 1000
WORKER_CONNECTIONS = 8 * CONNECTIONS
"""Connections that keep two workers busy, though each waits for half of them alone."""


async def measure_heartbeats(*, quick: bool) -> AsyncIterator[Result]:
    fleet, seconds, runs = (STATEMENT_SIZE, 0.05, 1) if quick else (10_000, 1, 4)
    async with processes.open_database() as database, processes.run_echo_server() as bare:
        await insert_nodes(database, fleet)
        async with (
            processes.run_registry(database.url) as one,
            processes.run_registry(database.url, workers=2) as two,
            processes.run_registry(
                database.url, auth="required", requests_per_second=1_000_000
            ) as guarded,
            processes.run_commit_server(database.url) as recorder,
        ):
            keys = await create_agent_tokens(database, fleet)
            sent = generate_heartbeats(fleet)
            recorders = (
                Load(http_connection.open_connection, one, encode_posts("/graphql", sent)),
                Load(
                    http_connection.open_connection,
                    guarded,
                    encode_authorized_posts("/graphql", sent, keys),
                ),
                Load(
                    http_connection.open_connection,
                    one,
                    encode_posts("/graphql", sent),
                    WORKER_CONNECTIONS,
                ),
                Load(
                    http_connection.open_connection,
                    two,
                    encode_posts("/graphql", sent),
                    WORKER_CONNECTIONS,
                ),
                Load(websocket_connection.open_graphql_connection, one, encode_messages(sent)),
                Load(websocket_connection.open_graphql_connection, recorder, encode_messages(sent)),
                Load(
                    http_connection.open_connection,
                    one,
                    encode_batch_posts(sent),
                    GATEWAY_CONNECTIONS,
                ),
            )
            echoes = (
                Load(http_connection.open_connection, bare, encode_posts("/echo", sent)),
                Load(websocket_connection.open_echo_connection, bare, encode_messages(sent)),
            )
            rounds, alone = [], []
            for _ in range(1 + runs):
                before = await _count_logged(database)
                recorded = [await load.run(seconds) for load in recorders]
                _check_all_logged(recorded, await _count_logged(database) - before)
                rounds.append(recorded + [await load.run(seconds) for load in echoes])
                alone.append(
                    (
                        await pgbench.measure_single_commits(database, fleet, seconds),
                        await pgbench.measure_statements(STATEMENT_SIZE, database, fleet, seconds),
                    )
                )
    # What came first was to warm up.
    http, keyed, worker, workers, sockets, least, gateways, echo, socket_echo = zip(
        *rounds[1:], strict=True
    )
    singles, statements = zip(*alone[1:], strict=True)
    unit, nodes, batches = (
        "heartbeats/s",
        f"{fleet:,} nodes",
        f"recordHeartbeats of {HEARTBEATS_PER_CALL}",
    )
    yield Result(
        f"recordHeartbeat over HTTP, {nodes}",
        unit,
        _list_rates(http),
        "bare JSON echo of the same body",
        _list_rates(echo),
        Target("ratio", "at least", 0.33),
        describe_cpu_usage(http),
    )
    yield Result(
        f"recordHeartbeat over websockets, {nodes}",
        unit,
        _list_rates(sockets),
        "bare websocket echo of the same message",
        _list_rates(socket_echo),
        Target("ratio", "at least", 0.33),
        describe_cpu_usage(sockets),
    )
    yield Result(
        "recordHeartbeat over websockets, beside the least it takes",
        unit,
        _list_rates(sockets),
        "a websocket that only commits it",
        _list_rates(least),
        note=describe_cpu_usage(least),
    )
    yield Result(
        f"{batches}, {nodes}",
        unit,
        _list_rates(gateways, HEARTBEATS_PER_CALL),
        "bare JSON echo of a single one",
        _list_rates(echo),
        Target("ratio", "at least", 1.2),
        describe_cpu_usage(gateways),
    )
    yield Result(
        "recordHeartbeat over HTTP, beside the database",
        unit,
        _list_rates(http),
        "pgbench, 32 connections, a commit each",
        singles,
    )
    yield Result(
        f"{batches}, beside the database",
        unit,
        _list_rates(gateways, HEARTBEATS_PER_CALL),
        f"pgbench, statements of {STATEMENT_SIZE:,}",
        statements,
    )
    yield Result(
        "the server's own time for one, by agents' keys",
        "µs",
        _list_server_microseconds(keyed),
        "without authentication",
        _list_server_microseconds(http),
        Target("ratio", "at most", 1.1),
        describe_cpu_usage(keyed),
    )
    yield Result(
        f"recordHeartbeat over HTTP, two workers, {WORKER_CONNECTIONS} connections",
        unit,
        _list_rates(workers),
        "one worker",
        _list_rates(worker),
        Target("ratio", "at least", 1.5),
        f"one: {describe_cpu_usage(worker)}; two: {describe_cpu_usage(workers)}",
    )


def _list_rates(runs: Sequence[LoadResult], each: int = 1) -> list[float]:
    return [each * run.rate for run in runs]


def _list_server_microseconds(runs: Sequence[LoadResult]) -> list[float]:
    """Of its core, for each answer: what the database or the machine take does not count."""
    return [1e6 * run.cpu.server / run.rate for run in runs]


async def _count_logged(database: Database) -> int:
    async with database.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM heartbeat_log")) or 0)


def _check_all_logged(recorded: Sequence[LoadResult], logged: int) -> None:
    """Raises AssertionError when not all that was acknowledged is in the database."""
    *singles, calls = recorded
    acknowledged = (
        sum(run.answer_count for run in singles) + HEARTBEATS_PER_CALL * calls.answer_count
    )
    if acknowledged > logged:
        raise AssertionError(f"{acknowledged} heartbeats were acknowledged, {logged} are logged")
