"""The loop that marks overdue nodes, and keeps the liveness rules that replies follow."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

import structlog

from db.core.database import Database
from db.core.enums import RegistryMode
from db.core.errors import Unavailable
from db.registry import process_heartbeats, sweep
from db.registry.liveness_rules import JITTER, LivenessRules
from db.registry.sweep import SweepResult
from graph.core.item_failures import report_failure
from graph.core.settings import Settings
from graph.live.heartbeat_pace import HeartbeatPace
from graph.telemetry.metrics import Metrics

log = structlog.get_logger()

_MAX_JITTER = 1.0


class Sweeper:
    """Sweeps at an interval; one for each process. `rules` are those of the last sweep."""

    def __init__(self, database: Database, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._interval_seconds = settings.sweep_interval_seconds
        self._process = uuid4()
        self._spread_until = 0.0
        self.rules: LivenessRules = settings.to_liveness_rules()
        self.pace = HeartbeatPace(self.rules.interval)
        self.mode = RegistryMode.NORMAL
        self.swept_at = 0.0  # system time, which Prometheus compares with its own

    async def sweep(self) -> SweepResult:
        """Sweep until no node is due; return the last result."""
        started = time.perf_counter()
        one_by_one = False
        while True:
            try:
                async with self._database.write() as session:
                    result = await sweep.sweep(
                        session, self._process, self.rules, one_by_one=one_by_one
                    )
            except Unavailable:
                raise
            except Exception:
                if one_by_one:
                    raise
                one_by_one = True
                continue
            for node, error in result.failures:
                report_failure("sweeper", error, node=str(node))
            self._apply_result(result)
            if not result.has_more:
                self._metrics.sweep_seconds.observe(time.perf_counter() - started)
                self.swept_at = time.time()
                return result

    async def run(self) -> None:
        """Sweep for ever, through outages of the database."""
        try:
            while True:
                await asyncio.sleep(self._interval_seconds)
                try:
                    await self.sweep()
                except Unavailable as error:
                    self._metrics.sweep_failures.inc()
                    log.warning("sweep.unavailable", cause=repr(error.__cause__))
        finally:
            with suppress(Unavailable):
                async with self._database.write() as session:
                    await process_heartbeats.remove_process(session, self._process)

    def _apply_result(self, result: SweepResult) -> None:
        self.mode = result.mode
        if result.outage_since is not None and result.live_nodes:
            # Nodes that could not be heard return together: their replies spread them.
            self._spread_until = time.monotonic() + 2 * self.rules.interval
            log.warning("registry.outage_ended", since=result.outage_since.isoformat())
        if result.mode_changed:
            log.warning("registry.mode_changed", mode=result.mode, reason=result.mode_reason)
        if result.changed_nodes or result.removed_nodes:
            log.info("sweep.changed", nodes=result.changed_nodes, removed=result.removed_nodes)
        self.rules = replace(
            self.rules,
            live_nodes=result.live_nodes,
            jitter=self._choose_jitter(result.live_nodes),
        )
        self.pace.update(self.rules.interval)

    def _choose_jitter(self, live_nodes: int) -> float:
        """Return the jitter of replies: after an outage it grows with the fleet."""
        returning = time.monotonic() < self._spread_until
        outage_jitter = min(_MAX_JITTER, live_nodes / self.rules.target_rate) if returning else 0.0
        return max(JITTER, outage_jitter)
