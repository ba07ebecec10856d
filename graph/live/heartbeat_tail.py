"""Heartbeats as they arrive, for live charts, read from the log that all processes write."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from db.core.database import Database
from db.core.errors import Unavailable
from db.core.tables import Heartbeat
from db.registry import history
from graph.core.item_failures import handle_items

log = structlog.get_logger()

MAX_WAITING = 100
_TASK = "heartbeat_tail"


@dataclass(slots=True, eq=False)
class HeartbeatSubscriber:
    """One reader of one node. A slow reader loses its oldest waiting heartbeats."""

    node: UUID
    last_id: int
    waiting: deque[Heartbeat] = field(default_factory=lambda: deque(maxlen=MAX_WAITING))
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow_heartbeats(self) -> AsyncIterator[list[Heartbeat]]:
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            arrived = list(self.waiting)
            self.waiting.clear()
            yield arrived


class HeartbeatTail:
    """Polls the log at an interval for all subscribers together, and not without any."""

    def __init__(self, database: Database, *, interval_seconds: float) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._subscribers: set[HeartbeatSubscriber] = set()
        self._has_subscribers = asyncio.Event()

    @property
    def subscriber_count(self) -> int:
        return len(self._subscribers)

    @contextmanager
    def subscribe(self, node: UUID, last_id: int) -> Iterator[HeartbeatSubscriber]:
        """Yield a subscriber to the heartbeats received after the one with id `last_id`."""
        subscriber = HeartbeatSubscriber(node, last_id)
        self._subscribers.add(subscriber)
        self._has_subscribers.set()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    async def run(self) -> None:
        """Poll for ever, through outages of the database."""
        while True:
            await self._has_subscribers.wait()
            if not self._subscribers:
                self._has_subscribers.clear()
                continue
            try:
                await self._deliver()
            except Unavailable as error:
                log.warning("heartbeat_tail.unavailable", cause=repr(error.__cause__))
            await asyncio.sleep(self._interval_seconds)

    async def _deliver(self) -> None:
        last_ids: dict[UUID, int] = {}
        for subscriber in self._subscribers:
            last_id = last_ids.get(subscriber.node, subscriber.last_id)
            last_ids[subscriber.node] = min(last_id, subscriber.last_id)
        arrived: dict[UUID, list[Heartbeat]] = {}
        parts = await handle_items(_TASK, list(last_ids.items()), self._read_arrived)
        for heartbeats, nodes in parts:
            arrived |= heartbeats
            last_ids = {node: id_ for node, id_ in last_ids.items() if node not in nodes}
        # What is left are nodes with a heartbeat that cannot be read: they go on after the newest.
        newest_ids = await self._read_newest_ids(list(last_ids)) if last_ids else {}
        for subscriber in self._subscribers:
            subscriber.last_id = max(subscriber.last_id, newest_ids.get(subscriber.node, 0))
            for heartbeat in arrived.get(subscriber.node, ()):
                if heartbeat.id > subscriber.last_id:
                    subscriber.last_id = heartbeat.id
                    subscriber.waiting.append(heartbeat)
                    subscriber.arrived.set()

    async def _read_arrived(
        self, last_ids: Sequence[tuple[UUID, int]]
    ) -> tuple[dict[UUID, list[Heartbeat]], set[UUID]]:
        """Return the heartbeats after the last id of each node, and the nodes that were read."""
        async with self._database.read() as session:
            arrived = await history.list_heartbeats_after(session, dict(last_ids))
        return arrived, {node for node, _ in last_ids}

    async def _read_newest_ids(self, nodes: Sequence[UUID]) -> dict[UUID, int]:
        async with self._database.read() as session:
            return await history.find_newest_heartbeat_ids(session, nodes)
