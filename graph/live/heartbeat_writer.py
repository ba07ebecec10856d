"""Group commit of heartbeats: those that arrive during one write share the next."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from db.core.database import Database
from db.core.errors import RegistryError, Unavailable
from db.registry import heartbeats
from db.registry.heartbeats import HeartbeatOutcome, HeartbeatReport
from db.registry.liveness_rules import LivenessRules
from db.registry.node_limits import UNLIMITED, NodeLimits
from graph.core.errors import INTERNAL
from graph.core.item_failures import report_failure
from graph.live.sweeper import Sweeper
from graph.telemetry.metrics import Metrics
from graph.telemetry.spans import Tracer

log = structlog.get_logger()

MAX_BATCH = 1000
_TASK = "heartbeat_writer"
MAX_QUEUED_REPORTS = 20_000
MAX_STRETCH = 4.0
MAX_LINKS = 128
"""Operations that the span of a batch is linked to: those of its first heartbeats."""

_RETRY_AFTER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class _QueuedReports:
    reports: Sequence[HeartbeatReport]
    outcomes: asyncio.Future[list[HeartbeatOutcome]]
    link: Any


class HeartbeatWriter:
    """Writes heartbeats in batches and acknowledges each after its commit.

    A heartbeat that arrives alone is written at once.
    """

    def __init__(
        self,
        database: Database,
        sweeper: Sweeper,
        metrics: Metrics,
        tracer: Tracer,
        limits: NodeLimits = UNLIMITED,
    ) -> None:
        self._database = database
        self._sweeper = sweeper
        self._metrics = metrics
        self._tracer = tracer
        self._limits = limits
        self._queue: deque[_QueuedReports] = deque()
        self._arrived = asyncio.Event()
        self.queued_reports = 0
        self._write_seconds = 0.0

    async def record(self, reports: Sequence[HeartbeatReport]) -> list[HeartbeatOutcome]:
        """Write the reports; return the outcome of each, in order.

        Raises: Unavailable: MAX_QUEUED_REPORTS reports are waiting, or the database did not answer.
        """
        if not reports:
            return []
        if self.queued_reports >= MAX_QUEUED_REPORTS:
            self._metrics.count_heartbeats(Unavailable.code, len(reports))
            raise Unavailable(_RETRY_AFTER_SECONDS)
        outcomes = asyncio.get_running_loop().create_future()
        queued = _QueuedReports(reports, outcomes, self._tracer.make_link())
        self._queue.append(queued)
        self.queued_reports += len(reports)
        self._arrived.set()
        return await queued.outcomes

    async def run(self) -> None:
        """Write batches for ever; the callers whose batch fails receive its error."""
        try:
            while True:
                await self._arrived.wait()
                if batch := self._take_batch():
                    links = [queued.link for queued in batch[:MAX_LINKS]]
                    with (
                        self._fail_unwritten(batch),
                        self._tracer.open_span("heartbeats.write", links=links),
                    ):
                        await self._write(batch)
                else:
                    self._arrived.clear()
        finally:
            for queued in self._queue:
                _fail(queued, Unavailable(_RETRY_AFTER_SECONDS))
            self._queue.clear()
            self.queued_reports = 0

    @contextmanager
    def _fail_unwritten(self, batch: list[_QueuedReports]) -> Iterator[None]:
        """Pass what the block raises to those of the batch who still wait, and go on."""
        try:
            yield
        except asyncio.CancelledError:
            for queued in batch:  # it may or may not be committed
                _fail(queued, Unavailable(_RETRY_AFTER_SECONDS))
            raise
        except Exception as error:  # noqa: BLE001  # nobody may wait for ever
            report_failure(_TASK, error, size=len(batch))
            for queued in batch:
                _fail(queued, error)

    def _stretch_rules(self) -> LivenessRules:
        """Return the rules with longer intervals the longer a heartbeat waits for its commit."""
        wait_seconds = self._write_seconds * (1 + self.queued_reports / MAX_BATCH)
        return replace(self._sweeper.rules, stretch=min(MAX_STRETCH, 1 + wait_seconds))

    def _take_batch(self) -> list[_QueuedReports]:
        batch: list[_QueuedReports] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].reports) <= MAX_BATCH):
            queued = self._queue.popleft()
            size += len(queued.reports)
            batch.append(queued)
        self.queued_reports -= size
        return batch

    async def _write(self, batch: list[_QueuedReports]) -> None:
        reports = [report for queued in batch for report in queued.reports]
        started = time.perf_counter()
        try:
            all_outcomes = await heartbeats.record_batch(
                self._database, reports, self._stretch_rules(), self._limits
            )
        except Exception as error:  # noqa: BLE001  # any error goes to the callers who wait
            await self._handle_failure(batch, error)
            return
        self._write_seconds = time.perf_counter() - started
        self._metrics.observe_batch(all_outcomes, self._write_seconds)
        outcomes = iter(all_outcomes)
        for queued in batch:
            own_outcomes = [next(outcomes) for _ in queued.reports]
            if not queued.outcomes.done():
                queued.outcomes.set_result(own_outcomes)

    async def _handle_failure(self, batch: list[_QueuedReports], error: Exception) -> None:
        """Fail the batch in an outage; after any other error write its halves one by one."""
        if isinstance(error, Unavailable) or len(batch) == 1:
            if not isinstance(error, RegistryError):
                nodes = [report.node_id for queued in batch for report in queued.reports]
                report_failure(_TASK, error, nodes=nodes)
            code = error.code if isinstance(error, RegistryError) else INTERNAL
            for queued in batch:
                self._metrics.count_heartbeats(code, len(queued.reports))
                _fail(queued, error)
            return
        log.warning("heartbeats.batch_failed", size=len(batch), cause=repr(error))
        middle = len(batch) // 2
        await self._write(batch[:middle])
        await self._write(batch[middle:])


def _fail(queued: _QueuedReports, error: Exception) -> None:
    if not queued.outcomes.done():
        queued.outcomes.set_exception(error)
