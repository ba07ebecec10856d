"""Heartbeats as they arrive, for live charts: read from the log, whichever process wrote them."""

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
    """One reader of one node; of what it is too slow for, the oldest is dropped."""

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
    """Asks the log once in a while, for all subscribers at once; not at all without any."""

    def __init__(self, database: Database, *, interval_seconds: float) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._subscribers: set[HeartbeatSubscriber] = set()
        self._wanted = asyncio.Event()

    @property
    def subscriber_count(self) -> int:
        return len(self._subscribers)

    @contextmanager
    def subscribe(self, node: UUID, last_id: int) -> Iterator[HeartbeatSubscriber]:
        """What was received after the heartbeat `last_id`."""
        subscriber = HeartbeatSubscriber(node, last_id)
        self._subscribers.add(subscriber)
        self._wanted.set()
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    async def run(self) -> None:
        """For ever, over outages of the database."""
        while True:
            await self._wanted.wait()
            if not self._subscribers:
                self._wanted.clear()
                continue
            try:
                await self._deliver()
            except Unavailable as error:
                log.warning("heartbeat_feed.unavailable", cause=repr(error.__cause__))
            await asyncio.sleep(self._interval_seconds)

    async def _deliver(self) -> None:
        behind: dict[UUID, int] = {}
        for subscriber in self._subscribers:
            known = behind.get(subscriber.node, subscriber.last_id)
            behind[subscriber.node] = min(known, subscriber.last_id)
        async with self._database.read() as session:
            arrived = await history.list_heartbeats_after(session, behind)
        for subscriber in self._subscribers:
            for heartbeat in arrived.get(subscriber.node, ()):
                if heartbeat.id > subscriber.last_id:
                    subscriber.last_id = heartbeat.id
                    subscriber.waiting.append(heartbeat)
                    subscriber.arrived.set()
