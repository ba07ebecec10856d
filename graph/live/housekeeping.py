"""Periodic work on the tables: making and dropping partitions, trimming logs, roll-ups."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit, tokens
from db.core.database import Database
from db.core.errors import Unavailable
from db.registry import status_changes
from db.retention import metrics_rollup, partitions
from db.retention.partitions import STATEMENT_TIMEOUT_SECONDS, Partition
from graph.core.item_failures import skip_poison
from graph.core.settings import Settings
from graph.live.storage import WARNING_PRESSURE, Storage
from graph.telemetry.metrics import Metrics

log = structlog.get_logger()

_TASK = "housekeeping"
_INTERVAL_SECONDS = 300
_PAUSE_SECONDS = 5
_TRIM_BATCH = 10_000
_ENDED_TOKENS_KEPT = timedelta(days=90)
_HOUR = timedelta(hours=1)


class Housekeeping:
    """Runs in every process. Each step may run twice, at once, or stop half-way."""

    def __init__(self, database: Database, settings: Settings, metrics: Metrics) -> None:
        self._database = database
        self._settings = settings
        self._metrics = metrics
        self._misplaced = self._hours_due = 0
        # Start at the current time, so that an alert fires when the work is never done.
        self._days_end = self._completed_at = time.time()
        metrics.add_gauge(
            "node_registry_misplaced_heartbeats",
            "Heartbeats in the default partition because the partition of their day was missing.",
            lambda: self._misplaced,
        )
        metrics.add_gauge(
            "node_registry_roll_up_lag_seconds",
            "Length of the past hours that are not yet in the metrics history.",
            lambda: self._hours_due * _HOUR.total_seconds(),
        )
        metrics.add_gauge(
            "node_registry_heartbeat_log_end_timestamp_seconds",
            "The end of the last day that the heartbeat log has a partition for.",
            lambda: self._days_end,
        )
        self._storage = Storage(database, settings)
        self._pressure = 0.0
        metrics.add_gauge(
            "node_registry_storage_pressure_ratio",
            "Use of the storage by its limit: from 1 on the oldest data is dropped early.",
            lambda: self._pressure,
        )
        metrics.add_gauge(
            "node_registry_last_upkeep_timestamp_seconds",
            "Time of the last complete round of housekeeping; at first, of the process start.",
            lambda: self._completed_at,
        )

    async def run(self) -> None:
        """Run a round every five minutes, for ever, through outages of the database.

        A round begins at once when the database has no space left, but not without a pause.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_SECONDS):
                    await self._database.disk_full.wait()
            await self.run_once()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def run_once(self) -> None:
        """Run each step once. A step that fails is logged and retried in the next round."""
        started, completed = time.perf_counter(), True
        for step in (
            self.make_room,
            self.make_day_partitions,
            self.trim_change_log,
            self.purge_tokens,
            self.trim_audit_log,
            self.roll_up_hours,
            self.drop_old_days,
            self.drop_old_months,
        ):
            done = False
            try:
                with skip_poison(_TASK, step=step.__name__):
                    await step()
                    done = True
            except Unavailable as error:
                log.warning(
                    "housekeeping.unavailable", step=step.__name__, cause=repr(error.__cause__)
                )
            completed = completed and done
        self._metrics.housekeeping_seconds.observe(time.perf_counter() - started)
        if completed:
            self._completed_at = time.time()

    async def make_room(self) -> None:
        """Drop the oldest data early while the storage runs out: days first, the audit log last.

        Days of heartbeats are dropped before months of the metrics history, neither before they are
        over; audit entries a day's worth at a time, none of the last seven days. A day that cannot
        be rolled up, for want of space or whatever cause, is dropped all the same.
        """
        is_full = self._database.disk_full.is_set()
        self._database.disk_full.clear()
        while await self._measure_pressure() >= 1 or is_full:
            is_full = False  # the size says whether one is enough, or the next failure
            for table in ("heartbeat_log", "metrics_history"):
                if parts := await self._list_old_partitions(table, 0):
                    break
            else:
                await self._trim_oldest_audit_entries()
                return
            if table == "heartbeat_log":
                try:
                    with skip_poison(_TASK, day=parts[0].name):
                        if not await self._roll_up_day(parts[0]):
                            return
                except Unavailable as error:
                    log.warning("storage.roll_up_failed", cause=repr(error.__cause__))
            if await self._drop_partition(table, parts[0]):
                self._count_early(table, parts[0].name)

    async def _measure_pressure(self) -> float:
        self._pressure = await self._storage.measure_pressure()
        if self._pressure >= WARNING_PRESSURE:
            log.warning("storage.running_out", pressure=round(self._pressure, 3))
        return self._pressure

    async def _trim_oldest_audit_entries(self) -> None:
        async with self._database.read() as session:
            age_days = await audit.measure_oldest_age_days(session)
        keep_days = max(audit.MIN_KEPT_DAYS, age_days - 1)
        if dropped := await self._trim_in_batches(
            partial(audit.trim_entries, keep_days=keep_days, batch=_TRIM_BATCH)
        ):
            self._count_early("audit_log", f"{dropped} entries")

    def _count_early(self, table: str, dropped: str) -> None:
        self._metrics.dropped_early.labels(table).inc()
        log.warning("storage.dropped_early", table=table, dropped=dropped)

    async def make_day_partitions(self) -> None:
        """Make the day partitions a week ahead, and count heartbeats that have none."""
        async with self._database.write(statement_seconds=STATEMENT_TIMEOUT_SECONDS) as session:
            await partitions.make_day_partitions(session)
        async with self._database.read() as session:
            self._misplaced = await partitions.count_misplaced_heartbeats(session)
            days = await partitions.list_partitions(session, "heartbeat_log")
        self._days_end = days[-1].end.timestamp()
        if self._misplaced:
            log.warning("heartbeat_log.misplaced", heartbeats=self._misplaced)

    async def trim_change_log(self) -> int:
        """Drop changes beyond the configured count or age; return how many."""
        dropped = await self._trim_in_batches(
            partial(
                status_changes.trim_log,
                keep_rows=self._settings.change_log_max_rows,
                keep_seconds=self._settings.change_log_max_age_seconds,
                batch=_TRIM_BATCH,
            )
        )
        if dropped:
            log.info("change_log.trimmed", changes=dropped)
        return dropped

    async def purge_tokens(self) -> None:
        """Delete tokens that ended 90 days ago or earlier."""
        await self._trim_in_batches(
            partial(tokens.purge_tokens, keep=_ENDED_TOKENS_KEPT, batch=_TRIM_BATCH)
        )

    async def trim_audit_log(self) -> int:
        """Drop audit entries older than the configured age; return how many."""
        keep_days = self._settings.audit_retention_days
        dropped = await self._trim_in_batches(
            partial(audit.trim_entries, keep_days=keep_days, batch=_TRIM_BATCH)
        )
        if dropped:
            log.info("audit_log.trimmed", entries=dropped)
        return dropped

    async def roll_up_hours(self) -> None:
        """Roll up the past hours, oldest first."""
        async with self._database.read() as session:
            days = await partitions.list_partitions(session, "heartbeat_log")
            hours = await metrics_rollup.list_due_hours(session, days[0].begin) if days else []
        self._hours_due = len(hours)
        for hour in hours:
            with skip_poison(_TASK, hour=hour.isoformat()):
                if not await self._roll_up_hour(hour):
                    return
                self._hours_due -= 1

    async def drop_old_days(self) -> None:
        """Drop days of the heartbeat log older than configured, each once it is rolled up."""
        for day in await self._list_old_partitions(
            "heartbeat_log", self._settings.heartbeat_log_max_age_seconds
        ):
            with skip_poison(_TASK, day=day.begin.date().isoformat()):
                if not await self._roll_up_day(day):
                    return
                if await self._drop_partition("heartbeat_log", day):
                    log.info("heartbeat_log.dropped", day=day.begin.date().isoformat())

    async def drop_old_months(self) -> None:
        """Drop months of the metrics history older than configured."""
        max_age_seconds = self._settings.metrics_history_max_age_seconds
        for month in await self._list_old_partitions("metrics_history", max_age_seconds):
            with skip_poison(_TASK, month=f"{month.begin:%Y-%m}"):
                if await self._drop_partition("metrics_history", month):
                    log.info("metrics_history.dropped", month=f"{month.begin:%Y-%m}")

    async def _drop_partition(self, table: str, partition: Partition) -> bool:
        """Drop a partition; return False if another process has dropped it already."""
        async with self._database.write(statement_seconds=STATEMENT_TIMEOUT_SECONDS) as session:
            if table == "heartbeat_log":
                await metrics_rollup.unmark_rolled_up(session, partition)
            return await partitions.drop_partition(session, partition)

    async def _roll_up_day(self, day: Partition) -> bool:
        """Roll up the hours of a day; return False if another process is rolling up."""
        for hour in (day.begin + n * _HOUR for n in range(24)):
            async with self._database.read() as session:
                complete = await metrics_rollup.is_complete(session, hour)
            if not complete and not await self._roll_up_hour(hour):
                return False
        return True

    async def _trim_in_batches(self, trim: Callable[[AsyncSession], Awaitable[int]]) -> int:
        """Trim in one transaction a batch, until a batch is not full; return the rows dropped."""
        dropped = 0
        while True:
            async with self._database.write() as session:
                batch = await trim(session)
            dropped += batch
            if batch < _TRIM_BATCH:
                return dropped

    async def _list_old_partitions(self, table: str, max_age_seconds: float) -> list[Partition]:
        async with self._database.read() as session:
            return await partitions.list_old_partitions(
                session, table, max(max_age_seconds, metrics_rollup.SETTLE_SECONDS)
            )

    async def _roll_up_hour(self, hour: datetime) -> bool:
        """Roll up one hour; return False if another process is rolling up."""
        async with self._database.read() as session:
            shares = await metrics_rollup.split_nodes(session, hour)
        heartbeats = 0
        for share in shares:
            async with self._database.write(statement_seconds=STATEMENT_TIMEOUT_SECONDS) as session:
                if not await metrics_rollup.try_lock(session):
                    return False
                heartbeats += await metrics_rollup.roll_up(session, hour, share)
        async with self._database.write() as session:
            await metrics_rollup.mark_rolled_up(session, hour, heartbeats)
        log.info("metrics.rolled_up", hour=hour.isoformat(), heartbeats=heartbeats)
        return True
