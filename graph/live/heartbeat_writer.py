"""Group commit: the heartbeats that arrive while one write is under way share the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from db.core.database import Database
from db.core.errors import RegistryError, Unavailable
from db.registry import heartbeats
from db.registry.heartbeats import HeartbeatAck, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from graph.core.errors import INTERNAL
from graph.live.sweeper import Sweeper
from graph.telemetry.metrics import Metrics
from graph.telemetry.spans import Tracer

log = structlog.get_logger()

MAX_BATCH = 1000
MAX_WAITING = 20_000
MAX_STRETCH = 4.0
MAX_LINKS = 128
"""Operations that the span of a batch is linked to: those of its first heartbeats."""

_RETRY_AFTER_SECONDS = 2.0

Outcome = HeartbeatAck | RegistryError


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    reports: Sequence[HeartbeatReport]
    outcomes: asyncio.Future[list[Outcome]]
    link: Any


class HeartbeatWriter:
    """Acknowledges nothing before its commit. A heartbeat that comes alone is written at once."""

    def __init__(
        self, database: Database, pacemaker: Sweeper, metrics: Metrics, tracer: Tracer
    ) -> None:
        self._database = database
        self._pacemaker = pacemaker
        self._metrics = metrics
        self._tracer = tracer
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self.queued = 0
        self._write_seconds = 0.0

    async def record(self, reports: Sequence[HeartbeatReport]) -> list[Outcome]:
        """The outcome of each, in order. Raises Unavailable at once when too many wait already."""
        if not reports:
            return []
        if self.queued >= MAX_WAITING:
            self._metrics.count_heartbeats(Unavailable.code, len(reports))
            raise Unavailable(_RETRY_AFTER_SECONDS)
        outcomes = asyncio.get_running_loop().create_future()
        waiting = _Waiting(reports, outcomes, self._tracer.current_link())
        self._queue.append(waiting)
        self.queued += len(reports)
        self._arrived.set()
        return await waiting.outcomes

    async def run(self) -> None:
        """Writes for ever; what cannot be written is told to those who wait for it."""
        try:
            while True:
                await self._arrived.wait()
                if batch := self._take_batch():
                    links = [waiting.link for waiting in batch[:MAX_LINKS]]
                    with self._tracer.open_span("heartbeats.write", links=links):
                        await self._write(batch)
                else:
                    self._arrived.clear()
        finally:
            for waiting in self._queue:
                _fail(waiting, Unavailable(_RETRY_AFTER_SECONDS))

    def _stretch_rules(self) -> LivenessRules:
        """The longer a heartbeat waits for its commit, the longer the next may take to come."""
        wait_seconds = self._write_seconds * (1 + self.queued / MAX_BATCH)
        return replace(self._pacemaker.rules, stretch=min(MAX_STRETCH, 1 + wait_seconds))

    def _take_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].reports) <= MAX_BATCH):
            waiting = self._queue.popleft()
            size += len(waiting.reports)
            batch.append(waiting)
        self.queued -= size
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        reports = [report for waiting in batch for report in waiting.reports]
        started = time.perf_counter()
        try:
            written = await heartbeats.record_batch(self._database, reports, self._stretch_rules())
        except asyncio.CancelledError:
            self._queue.extendleft(reversed(batch))  # whether it is committed nobody knows
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it is theirs who wait
            await self._handle_failure(batch, error)
            return
        self._write_seconds = time.perf_counter() - started
        self._metrics.observe_batch(written, self._write_seconds)
        outcomes = iter(written)
        for waiting in batch:
            own = [next(outcomes) for _ in waiting.reports]
            if not waiting.outcomes.done():
                waiting.outcomes.set_result(own)

    async def _handle_failure(self, batch: list[_Waiting], error: Exception) -> None:
        """A fault may lie in one of them alone: each is then tried by itself."""
        if isinstance(error, Unavailable) or len(batch) == 1:
            code = error.code if isinstance(error, RegistryError) else INTERNAL
            for waiting in batch:
                self._metrics.count_heartbeats(code, len(waiting.reports))
                _fail(waiting, error)
            return
        log.error("heartbeats.batch_failed", size=len(batch), exc_info=error)
        for waiting in batch:
            await self._write([waiting])


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.outcomes.done():
        waiting.outcomes.set_exception(error)
