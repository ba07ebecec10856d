"""Status changes written as the registry itself writes them, and their subscribers."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from uuid import UUID

import httpx
from sqlalchemy import event, text

from bench.websocket_client import WebSocketClient, connect_graphql
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
    """Open a websocket and ask for all status changes.

    The first message that `on_message` gets is the connection_ack of the protocol.
    """
    client = await connect_graphql(port, on_message)
    client.send(_SUBSCRIBE)
    return client


async def wait_for_subscribers(port: int, count: int) -> None:
    """Wait until the registry counts `count` subscribers.

    The protocol does not tell a client that its subscription has begun, so ask /metrics.
    """
    pattern = re.compile(
        rf'^node_registry_subscribers{{stream="status_changes"}} {count}(\.0)?$', re.MULTILINE
    )
    async with asyncio.timeout(_BEGIN_TIMEOUT_SECONDS), httpx.AsyncClient() as http:
        while not pattern.search((await http.get(f"http://127.0.0.1:{port}/metrics")).text):
            await asyncio.sleep(0.05)


def find_revision(message: bytes) -> int | None:
    """Return the first revision in a message, or None."""
    _, separator, rest = message.partition(_REVISION)
    return int(rest[: rest.index(b'"')]) if separator else None


class ChangeWriter:
    """Writes status changes of one node that never leaves its status.

    What is measured is the way of a change, not its cause.
    """

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
        """Return a writer for a node.

        Raises: LookupError: there is no such node.
        """
        async with database.read() as session:
            node = await nodes.find_node(session, node_id)
        if node is None:
            raise LookupError(node_id)
        return cls(database, node.id)

    async def write(self, count: int, batch_size: int = 100) -> None:
        """Write `count` changes in transactions of `batch_size`."""
        while count > 0:
            async with self._database.write() as session:
                await status_changes.apply_transitions(
                    session, [self._transition] * min(count, batch_size)
                )
            count -= batch_size

    async def commit_change(self, *, durable: bool) -> tuple[int, float]:
        """Write one change.

        Return its revision, and the time before COMMIT was sent (`time.perf_counter`). Unless
        `durable`, the commit does not wait for the disk.
        """
        async with self._database.write() as session:
            if not durable:
                await session.execute(text("SET LOCAL synchronous_commit = off"))
            revision = await status_changes.apply_transitions(session, [self._transition])
        return revision, self._committed_at

    def _record_commit_time(self, _connection: object) -> None:
        self._committed_at = time.perf_counter()
