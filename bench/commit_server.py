"""The least that a heartbeat over a websocket takes: it is read, committed and answered.

There is no GraphQL here, nothing is checked, nobody is asked for a key, and no failure is told. The
group commit is the registry's own; the answer has the same two messages.

`python -m bench.commit_server DESCRIPTOR URL` serves on the listening socket that it inherits, and
records in the database at that address.
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
from db.registry.heartbeats import HeartbeatReport, Recorded
from graph.core.settings import Settings
from graph.live.heartbeat_writer import HeartbeatWriter
from graph.live.sweeper import Sweeper
from graph.telemetry.metrics import Metrics
from graph.telemetry.spans import NoTracer


class LifespanState(TypedDict):
    writer: HeartbeatWriter


@asynccontextmanager
async def open_writer(_: Starlette) -> AsyncIterator[LifespanState]:
    database, metrics = Database(sys.argv[2]), Metrics()
    writer = HeartbeatWriter(database, Sweeper(database, Settings(), metrics), metrics, NoTracer())
    running = asyncio.create_task(writer.run())
    yield {"writer": writer}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await database.close()


async def record_heartbeats(websocket: WebSocket) -> None:
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
    websocket: WebSocket, writer: HeartbeatWriter, asked: dict[str, Any]
) -> None:
    beat = asked["payload"]["variables"]["input"]
    report = HeartbeatReport(
        beat["nodeId"], beat["bootId"], beat["sequence"], metrics=beat["metrics"]
    )
    [outcome] = await writer.record([report])
    assert isinstance(outcome, Recorded), outcome  # noqa: S101  # or the bench would wait for ever
    told = {
        "nodeId": outcome.node_id,
        "status": outcome.status,
        "receivedAt": outcome.received_at,
        "nextHeartbeatInSeconds": outcome.next_interval,
    }
    payload = {"data": {"recordHeartbeat": told}}
    await _send(websocket, {"id": asked["id"], "type": "next", "payload": payload})
    await _send(websocket, {"id": asked["id"], "type": "complete"})


async def _send(websocket: WebSocket, message: dict[str, Any]) -> None:
    await websocket.send_text(orjson.dumps(message).decode())


if __name__ == "__main__":
    serve(Starlette(routes=[WebSocketRoute("/graphql", record_heartbeats)], lifespan=open_writer))
