"""The least that a heartbeat over a websocket can cost: it is read, committed and answered.

There is no GraphQL, no validation, no authentication and no error handling. The group commit is
the registry's own, and the answer has the same two messages.

`python -m bench.commit_server DESCRIPTOR URL` serves on the listening socket that it inherits, and
records heartbeats in the database at that URL.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

import orjson
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from bench.echo_server import serve
from bench.websocket_client import PROTOCOL
from db.core.database import Database
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from graph.core.settings import Settings
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.sweeper import Sweeper
from graph.telemetry.metrics import Metrics
from graph.telemetry.spans import NoTracer


class LifespanState(TypedDict):
    writer: HeartbeatWriter


@asynccontextmanager
async def open_writer(_: Starlette) -> AsyncIterator[LifespanState]:
    """Run the registry's heartbeat writer for the lifespan of the app."""
    database, metrics = Database(sys.argv[2]), Metrics()
    sweeper = Sweeper(database, Settings(), metrics)
    writer = HeartbeatWriter(database, sweeper, metrics, NoTracer())
    task = asyncio.create_task(writer.run())
    yield {"writer": writer}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await database.close()


async def record_heartbeats(websocket: WebSocket) -> None:
    """Acknowledge the connection, then record and answer one heartbeat after another."""
    writer: HeartbeatWriter = websocket.state.writer
    await websocket.accept(PROTOCOL)
    try:
        await websocket.receive_text()
        await websocket.send_text('{"type":"connection_ack"}')
        while True:
            await _record_heartbeat(websocket, writer, orjson.loads(await websocket.receive_text()))
    except WebSocketDisconnect:
        pass


async def _record_heartbeat(
    websocket: WebSocket, writer: HeartbeatWriter, message: dict[str, Any]
) -> None:
    heartbeat = message["payload"]["variables"]["input"]
    report = HeartbeatReport(
        heartbeat["nodeId"],
        heartbeat["bootId"],
        heartbeat["sequence"],
        metrics=heartbeat["metrics"],
    )
    [outcome] = await writer.record([report])
    # Without an answer the bench would wait forever.
    assert isinstance(outcome, HeartbeatAck), outcome  # noqa: S101
    data = {
        "nodeId": outcome.node_id,
        "status": outcome.status,
        "receivedAt": outcome.received_at,
        "nextHeartbeatInSeconds": outcome.interval_seconds,
    }
    payload = {"data": {"recordHeartbeat": data}}
    await _send(websocket, {"id": message["id"], "type": "next", "payload": payload})
    await _send(websocket, {"id": message["id"], "type": "complete"})


async def _send(websocket: WebSocket, message: dict[str, Any]) -> None:
    await websocket.send_text(orjson.dumps(message).decode())


if __name__ == "__main__":
    serve(Starlette(routes=[WebSocketRoute("/graphql", record_heartbeats)], lifespan=open_writer))
