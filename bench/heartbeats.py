"""How many heartbeats a second one process records, each of them on disk before its answer.

The limits are a bare Starlette route and a bare websocket that send back what they get, and what
the database does by itself. All are measured in turn, so that what slows the machine slows all.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import text

from agent.documents import RECORD_HEARTBEAT, id_of
from bench import pgbench, requests, stage, talker
from bench.closed_loop import Load, Run, cores
from bench.nodes import settle
from bench.requests import post
from bench.rows import Row, Target
from db.database import Database

GATEWAYS = 8
A_CALL = 100
A_STATEMENT = 1000

RECORD_HEARTBEATS = """
mutation RecordHeartbeats($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    ... on RecordHeartbeatPayload { nodeId status receivedAt nextHeartbeatInSeconds }
    ... on HeartbeatRejected { nodeId code message }
  }
}
"""

Heartbeats = Iterator[dict[str, Any]]
"""Each as RecordHeartbeatInput."""


async def heartbeats(*, quick: bool) -> AsyncIterator[Row]:
    fleet, seconds, runs = (A_STATEMENT, 0.3, 1) if quick else (10_000, 1.5, 3)
    async with stage.database() as database, stage.bare() as bare:
        await settle(database, fleet)
        async with (
            stage.registry(database.url) as one,
            stage.registry(database.url, workers=2) as two,
        ):
            beats = _beats(fleet)
            recorders = (
                Load(requests.dial, one, _posts("/graphql", beats)),
                Load(requests.dial, two, _posts("/graphql", beats)),
                Load(talker.operations, one, _messages(beats)),
                Load(requests.dial, one, _calls(beats), GATEWAYS),
            )
            echoes = (
                Load(requests.dial, bare, _posts("/echo", beats)),
                Load(talker.echoes, bare, _messages(beats)),
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
    http, workers, sockets, calls, echo, socket_echo = zip(*rounds[1:], strict=True)
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
        f"{batches}, {nodes}",
        unit,
        _rates(calls, A_CALL),
        "bare JSON echo of a single one",
        _rates(echo),
        Target("ratio", "at least", 1.2),
        cores(calls),
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
        _rates(calls, A_CALL),
        f"pgbench, statements of {A_STATEMENT:,}",
        statements,
    )
    yield Row(
        "recordHeartbeat over HTTP, two workers",
        unit,
        _rates(workers),
        "one worker",
        _rates(http),
        Target("ratio", "at least", 1.5),
        cores(workers),
    )


def _rates(runs: Sequence[Run], each: int = 1) -> list[float]:
    return [each * run.rate for run in runs]


def _beats(fleet: int) -> Heartbeats:
    """Of the nodes in turn, over and over, each time newer."""
    sequence = 0
    while True:
        sequence += 1
        for number in range(fleet):
            yield {
                "nodeId": f"node-{number:05}",
                "bootId": "boot-1",
                "sequence": sequence,
                "metrics": {
                    "cpuPercent": 12.34,
                    "memoryPercent": 43.21,
                    "memoryAvailableMb": 12345.67,
                    "diskPercent": 56.78,
                    "loadAverage": 0.52,
                    "gpus": [],
                    "extra": {"uptimeSeconds": 123456},
                },
            }


def _posts(path: str, beats: Heartbeats) -> Iterator[bytes]:
    for beat in beats:
        yield post(path, orjson.dumps(_one(beat)))


def _messages(beats: Heartbeats) -> Iterator[str]:
    for beat in beats:
        yield orjson.dumps({"id": "1", "type": "subscribe", "payload": _one(beat)}).decode()


def _calls(beats: Heartbeats) -> Iterator[bytes]:
    while True:
        asked = {"query": RECORD_HEARTBEATS, "variables": {"inputs": [*islice(beats, A_CALL)]}}
        yield post("/graphql", orjson.dumps(asked))


def _one(beat: dict[str, Any]) -> dict[str, Any]:
    return {"documentId": id_of(RECORD_HEARTBEAT), "variables": {"input": beat}}


async def _logged(database: Database) -> int:
    async with database.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM heartbeat_log")) or 0)


def _prove(recorded: Sequence[Run], logged: int) -> None:
    """Raises AssertionError when not all that was acknowledged is in the database."""
    *singles, calls = recorded
    acknowledged = sum(run.answers for run in singles) + A_CALL * calls.answers
    if acknowledged > logged:
        raise AssertionError(f"{acknowledged} heartbeats were acknowledged, {logged} are logged")
