"""Heartbeats as they arrive, for live charts, read from the log that all processes write."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from db.core.database import Database
from db.core.errors import Unavailable
from db.core.tables import Heartbeat
from db.registry import history

log = structlog.get_logger()

MAX_WAITING = 100


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
        async with self._database.read() as session:
            arrived = await history.list_heartbeats_after(session, last_ids)
        for subscriber in self._subscribers:
            for heartbeat in arrived.get(subscriber.node, ()):
                if heartbeat.id > subscriber.last_id:
                    subscriber.last_id = heartbeat.id
                    subscriber.waiting.append(heartbeat)
                    subscriber.arrived.set()
