"""The liveness loop: sweeps at its interval and keeps the rules by which replies are made."""

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
from graph.core.settings import Settings
from graph.live.heartbeat_pace import HeartbeatPace
from graph.telemetry.metrics import Metrics

log = structlog.get_logger()

_MAX_JITTER = 1.0


class Sweeper:
    """Holds the rules as of the last sweep. One for each process."""

    def __init__(self, database: Database, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._interval_seconds = settings.sweep_interval_seconds
        self._process = uuid4()
        self._spread_until = 0.0
        self.rules: LivenessRules = settings.to_liveness_rules()
        self.pace = HeartbeatPace(self.rules.interval)
        self.mode = RegistryMode.NORMAL
        self.swept_at = 0.0  # by the system's clock, as Prometheus compares it

    async def sweep(self) -> SweepResult:
        """One round, repeated until nothing is due."""
        started = time.perf_counter()
        while True:
            async with self._database.write() as session:
                swept = await sweep.sweep(session, self._process, self.rules)
            self._apply_result(swept)
            if not swept.has_more:
                self._metrics.sweep_seconds.observe(time.perf_counter() - started)
                self.swept_at = time.time()
                return swept

    async def run(self) -> None:
        """Sweeps for ever; goes on when the database was away and comes back."""
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

    def _apply_result(self, swept: SweepResult) -> None:
        self.mode = swept.mode
        if swept.outage_since is not None and swept.live_nodes:
            # Those who could not be heard come back together: they are told to spread.
            self._spread_until = time.monotonic() + 2 * self.rules.interval
            log.warning("registry.was_deaf", since=swept.outage_since.isoformat())
        if swept.mode_changed:
            log.warning("registry.mode", mode=swept.mode, reason=swept.mode_reason)
        if swept.changed_nodes or swept.removed_nodes:
            log.info("sweep.changed", nodes=swept.changed_nodes, removed=swept.removed_nodes)
        self.rules = replace(
            self.rules,
            live_nodes=swept.live_nodes,
            jitter=self._choose_jitter(swept.live_nodes),
        )
        self.pace.update(self.rules.interval)

    def _choose_jitter(self, live_nodes: int) -> float:
        """After a silence a fleet is spread the wider the larger it is."""
        returning = time.monotonic() < self._spread_until
        wide = min(_MAX_JITTER, live_nodes / self.rules.target_rate) if returning else 0.0
        return max(JITTER, wide)
