"""Status changes, written as the registry itself does, and those who follow them."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from uuid import UUID

import httpx
from sqlalchemy import event, text

from bench.websocket_client import WebSocketClient, connect
from db.core.database import Database
from db.core.enums import NodeStatus, StatusReason
from db.registry import nodes, status_changes
from db.registry.status_changes import Transition

_DOCUMENT = """
subscription { nodeStatusChanges { __typename
  ... on NodeStatusChanged {
    change { revision nodeId previousStatus status reason note actor changedAt }
    node { nodeId name status statusReason statusSince role type labels }
  }
  ... on Bookmark { revision }
  ... on ResyncRequired { revision reason }
} }
"""
_SUBSCRIBE = json.dumps({"id": "1", "type": "subscribe", "payload": {"query": _DOCUMENT}})
_BEGIN_TIMEOUT_SECONDS = 30
_REVISION = b'"revision":"'


async def subscribe(
    port: int, on_message: Callable[[bytes], None] | None = None
) -> WebSocketClient:
    """A subscriber; the first message that it gets is the acknowledgement of the protocol."""
    socket = await connect(port, "/graphql", on_message)
    socket.expect(1)
    socket.send('{"type":"connection_init"}')
    await socket.wait_for_messages()
    socket.send(_SUBSCRIBE)
    return socket


async def wait_for_subscribers(port: int, subscribers: int) -> None:
    """Until the registry counts so many: nothing tells a client that its subscription began."""
    wanted = re.compile(
        rf'^node_registry_subscribers{{stream="status_changes"}} {subscribers}(\.0)?$', re.MULTILINE
    )
    async with asyncio.timeout(_BEGIN_TIMEOUT_SECONDS), httpx.AsyncClient() as http:
        while not wanted.search((await http.get(f"http://127.0.0.1:{port}/metrics")).text):
            await asyncio.sleep(0.05)


def find_revision(message: bytes) -> int | None:
    _, found, rest = message.partition(_REVISION)
    return int(rest[: rest.index(b'"')]) if found else None


class ChangeWriter:
    """Of one node that never leaves its status, for what is measured is the way, not the cause."""

    def __init__(self, database: Database, node: UUID) -> None:
        self._database = database
        self._transition = Transition(
            node, NodeStatus.OFFLINE, NodeStatus.OFFLINE, StatusReason.SEEDED
        )
        self._committed_at = 0.0
        event.listen(database.engine.sync_engine, "commit", self._record_commit_time)

    @classmethod
    async def for_node(
        cls, database: Database, node_id: str = "node-1-hetzner-gex44"
    ) -> "ChangeWriter":
        async with database.read() as session:
            node = await nodes.find(session, node_id)
        if node is None:
            raise LookupError(node_id)
        return cls(database, node.id)

    async def write(self, count: int, at_once: int = 100) -> None:
        """In transactions of `at_once`."""
        while count > 0:
            async with self._database.write() as session:
                await status_changes.apply(session, [self._transition] * min(count, at_once))
            count -= at_once

    async def commit_change(self, *, durable: bool) -> tuple[int, float]:
        """The revision, and the moment before COMMIT was sent, as `time.perf_counter` has it."""
        async with self._database.write() as session:
            if not durable:
                await session.execute(text("SET LOCAL synchronous_commit = off"))
            revision = await status_changes.apply(session, [self._transition])
        return revision, self._committed_at

    def _record_commit_time(self, _connection: object) -> None:
        self._committed_at = time.perf_counter()
