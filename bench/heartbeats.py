"""How many heartbeats a second one process records, each on disk before it is answered.

The limits are a bare Starlette route and a bare websocket that echo what they get, and what the
database does by itself. All are measured in turn, so that what slows the machine slows them all.
"""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import text

from bench import pgbench, processes
from bench.closed_loop import CONNECTIONS, Load, LoadResult
from bench.heartbeat_load import (
    GATEWAY_CONNECTIONS,
    HEARTBEATS_PER_CALL,
    encode_authorized_posts,
    encode_batch_posts,
    encode_messages,
    encode_posts,
    generate_heartbeats,
)
from bench.http_connection import open_http_connection
from bench.nodes import create_agent_tokens, insert_nodes
from bench.pgbench import STATEMENT_SIZE
from bench.processes import describe_cpu_usage
from bench.results import Result, Target
from bench.websocket_connection import open_echo_connection, open_graphql_connection
from db.core.database import Database

WORKER_CONNECTIONS = 8 * CONNECTIONS
"""Enough connections to keep two workers busy, although each worker gets only half of them."""


async def measure_heartbeats(*, quick: bool) -> AsyncIterator[Result]:
    node_count, seconds, run_count = (STATEMENT_SIZE, 0.05, 1) if quick else (10_000, 1, 4)
    async with processes.open_database() as database, processes.run_echo_server() as echo_server:
        await insert_nodes(database, node_count)
        async with (
            processes.run_registry(database.url) as registry,
            processes.run_registry(database.url, workers=2) as pool,
            processes.run_registry(
                database.url, auth="required", requests_per_second=1_000_000
            ) as authenticated,
            processes.run_commit_server(database.url) as commit_server,
        ):
            tokens = await create_agent_tokens(database, node_count)
            heartbeats = generate_heartbeats(node_count)
            authorized_posts = encode_authorized_posts("/graphql", heartbeats, tokens)
            posts, messages = encode_posts("/graphql", heartbeats), encode_messages(heartbeats)
            batch_posts = encode_batch_posts(heartbeats)
            loads = (
                Load(open_http_connection, registry, posts),
                Load(open_http_connection, authenticated, authorized_posts),
                Load(open_http_connection, registry, posts, WORKER_CONNECTIONS),
                Load(open_http_connection, pool, posts, WORKER_CONNECTIONS),
                Load(open_graphql_connection, registry, messages),
                Load(open_graphql_connection, commit_server, messages),
                Load(open_http_connection, registry, batch_posts, GATEWAY_CONNECTIONS),
            )
            baselines = (
                Load(open_http_connection, echo_server, encode_posts("/echo", heartbeats)),
                Load(open_echo_connection, echo_server, messages),
            )
            rounds, database_rates = [], []
            for _ in range(1 + run_count):
                count_before = await _count_logged(database)
                recorded = [await load.run(seconds) for load in loads]
                _check_all_logged(recorded, await _count_logged(database) - count_before)
                rounds.append(recorded + [await load.run(seconds) for load in baselines])
                database_rates.append(
                    (
                        await pgbench.measure_single_commits(database, node_count, seconds),
                        await pgbench.measure_statements(database, node_count, seconds),
                    )
                )
    # The first round is the warm-up.
    http, authorized, one_worker, two_workers, websocket, commit, batch, http_echo, socket_echo = (
        zip(*rounds[1:], strict=True)
    )
    single_commits, statements = zip(*database_rates[1:], strict=True)
    unit, nodes = "heartbeats/s", f"{node_count:,} nodes"
    batches = f"recordHeartbeats of {HEARTBEATS_PER_CALL}"
    yield Result(
        f"recordHeartbeat over HTTP, {nodes}",
        unit,
        _list_rates(http),
        "bare JSON echo of the same body",
        _list_rates(http_echo),
        Target("ratio", "at least", 0.33),
        _describe_cpu_usage(http),
    )
    yield Result(
        f"recordHeartbeat over websockets, {nodes}",
        unit,
        _list_rates(websocket),
        "bare websocket echo of the same message",
        _list_rates(socket_echo),
        Target("ratio", "at least", 0.33),
        _describe_cpu_usage(websocket),
    )
    yield Result(
        "recordHeartbeat over websockets, beside the least it takes",
        unit,
        _list_rates(websocket),
        "a websocket that only commits it",
        _list_rates(commit),
        note=_describe_cpu_usage(commit),
    )
    yield Result(
        f"{batches}, {nodes}",
        unit,
        _list_rates(batch, HEARTBEATS_PER_CALL),
        "bare JSON echo of a single one",
        _list_rates(http_echo),
        Target("ratio", "at least", 1.2),
        _describe_cpu_usage(batch),
    )
    yield Result(
        "recordHeartbeat over HTTP, beside the database",
        unit,
        _list_rates(http),
        "pgbench, 32 connections, a commit each",
        single_commits,
    )
    yield Result(
        f"{batches}, beside the database",
        unit,
        _list_rates(batch, HEARTBEATS_PER_CALL),
        f"pgbench, statements of {STATEMENT_SIZE:,}",
        statements,
    )
    yield Result(
        "the server's own time for one, by agents' keys",
        "µs",
        _list_server_microseconds(authorized),
        "without authentication",
        _list_server_microseconds(http),
        Target("ratio", "at most", 1.1),
        _describe_cpu_usage(authorized),
    )
    yield Result(
        f"recordHeartbeat over HTTP, two workers, {WORKER_CONNECTIONS} connections",
        unit,
        _list_rates(two_workers),
        "one worker",
        _list_rates(one_worker),
        Target("ratio", "at least", 1.5),
        f"one: {_describe_cpu_usage(one_worker)}; two: {_describe_cpu_usage(two_workers)}",
    )


def _list_rates(runs: Sequence[LoadResult], heartbeats_per_answer: int = 1) -> list[float]:
    """Return the heartbeats a second of each run."""
    return [heartbeats_per_answer * run.rate for run in runs]


def _list_server_microseconds(runs: Sequence[LoadResult]) -> list[float]:
    """Return the server's CPU time for an answer, in µs, without that of the database."""
    return [1e6 * run.cpu.server / run.rate for run in runs]


def _describe_cpu_usage(runs: Sequence[LoadResult]) -> str:
    return describe_cpu_usage([run.cpu for run in runs])


async def _count_logged(database: Database) -> int:
    async with database.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM heartbeat_log")) or 0)


def _check_all_logged(recorded: Sequence[LoadResult], logged_count: int) -> None:
    """Check that the database has every acknowledged heartbeat; the last run is that of batches.

    Raises: AssertionError: more were acknowledged than are logged.
    """
    *singles, batch = recorded
    acknowledged_count = (
        sum(run.answer_count for run in singles) + HEARTBEATS_PER_CALL * batch.answer_count
    )
    if acknowledged_count > logged_count:
        raise AssertionError(
            f"{acknowledged_count} heartbeats were acknowledged, {logged_count} are logged"
        )
