"""The roll-up of heartbeats into the metrics history, compared with a model."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.tables import MEASURES, METRICS_HISTORY
from db.retention import metrics_rollup, partitions
from db.retention.metrics_rollup import NodeRange
from db.retention.partitions import Partition
from tests.support.fleet import fetch_rows, limit_examples

BEGIN = datetime(2026, 1, 31, 22, tzinfo=UTC)
HOUR = timedelta(hours=1)
NODES = [UUID(int=0), UUID(int=2**127), UUID(int=2**128 - 1)]
MOMENTS = st.integers(0, 4 * 3600 * 2).map(lambda n: BEGIN + timedelta(seconds=n / 2)) | (
    st.integers(0, 4).map(lambda n: BEGIN + n * HOUR)
)
NUMBERS = st.floats(-1e3, 1e6) | st.integers(0, 100) | st.sampled_from([0, -300, 1e15])
JUNK = st.sampled_from([None, True, "12", "", [], [1], {}, {"a": 1}, 1e16, -1e300, 10**400])
VALUES = NUMBERS | NUMBERS | JUNK
GPU = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("utilization_percent", "memory_free_mb", "temperature_celsius"), VALUES
    ),
)
DOCUMENTS = (
    st.fixed_dictionaries(
        {},
        optional={
            **{m: VALUES for m in MEASURES if not m.startswith("gpu_")},
            "gpus": st.lists(GPU, max_size=3) | st.lists(GPU | JUNK, max_size=3) | JUNK,
            "extra": JUNK,
        },
    )
    | JUNK
)
Beat = tuple[datetime, UUID, Any]
BEATS = st.lists(st.tuples(MOMENTS, st.sampled_from(NODES), DOCUMENTS), max_size=12)
SHARES = st.lists(st.integers(1, 2**128 - 1), max_size=3, unique=True).map(
    lambda inner: [
        (UUID(int=first), UUID(int=end - 1)) for first, end in pairwise([0, *sorted(inner), 2**128])
    ]
)


def to_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
        return None
    return float(value)


def extract_measures(document: Any) -> dict[str, float]:
    """Return what one heartbeat reports, by measure."""
    metrics = document if isinstance(document, dict) else {}
    gpus = metrics.get("gpus")
    gpus = [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []

    def list_gpu_values(key: str) -> list[float]:
        return [n for gpu in gpus if (n := to_number(gpu.get(key))) is not None]

    measures = {
        measure: to_number(metrics.get(measure)) for measure in MEASURES if measure[:3] != "gpu"
    }
    utilizations = list_gpu_values("utilization_percent")
    measures["gpu_utilization_percent"] = (
        sum(utilizations) / len(utilizations) if utilizations else None
    )
    measures["gpu_memory_free_mb"] = max(list_gpu_values("memory_free_mb"), default=None)
    measures["gpu_temperature_celsius"] = max(list_gpu_values("temperature_celsius"), default=None)
    return {measure: value for measure, value in measures.items() if value is not None}


def compute_history(beats: Sequence[Beat]) -> dict[tuple[UUID, datetime], dict[str, Any]]:
    hours: dict[tuple[UUID, datetime], list[dict[str, float]]] = {}
    for moment, node, document in beats:
        hour = moment.replace(minute=0, second=0, microsecond=0)
        hours.setdefault((node, hour), []).append(extract_measures(document))
    history = {}
    for key, heartbeats in hours.items():
        row: dict[str, Any] = {"heartbeats": len(heartbeats)}
        for name in MEASURES:
            values = [measures[name] for measures in heartbeats if name in measures]
            row |= {
                f"{name}_min": min(values, default=None),
                f"{name}_avg": sum(values) / len(values) if values else None,
                f"{name}_max": max(values, default=None),
            }
        history[key] = row
    return history


LOG = text("""
INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
SELECT moment, node, 'online', CAST(document AS jsonb)
FROM unnest(CAST(:moments AS timestamptz[]), CAST(:nodes AS uuid[]), CAST(:documents AS text[]))
    AS beat (moment, node, document)
""")


async def log_heartbeats(session: AsyncSession, beats: Sequence[Beat]) -> None:
    """Log heartbeats as plain SQL can: any JSON at any time."""
    moments, nodes, documents = zip(*beats, strict=True) if beats else ((), (), ())
    parameters = {"moments": moments, "nodes": nodes, "documents": [*map(json.dumps, documents)]}
    await session.execute(LOG, parameters)


async def roll_up(session: AsyncSession, hour: datetime, shares: Sequence[NodeRange]) -> None:
    row_counts = [await metrics_rollup.roll_up(session, hour, share) for share in shares]
    await metrics_rollup.mark_rolled_up(session, hour, sum(row_counts))


async def read_history(session: AsyncSession) -> dict[tuple[UUID, datetime], dict[str, Any]]:
    result = await session.execute(select(METRICS_HISTORY))
    return {(row.pop("node_id"), row.pop("hour")): row for row in map(dict, result.mappings())}


def is_equal(history: dict[Any, dict[str, Any]], model: dict[Any, dict[str, Any]]) -> bool:
    return history == {
        key: {name: value if value is None else pytest.approx(value) for name, value in row.items()}
        for key, row in model.items()
    }


async def clear(session: AsyncSession) -> None:
    await session.execute(text("DELETE FROM heartbeat_log"))
    await session.execute(text("TRUNCATE metrics_history, rolled_up_hours"))


@given(BEATS, BEATS, SHARES, SHARES)
@limit_examples(60)
async def test_history_equals_the_model_of_the_log_with_late_heartbeats(
    database: Database,
    beats: list[Beat],
    late: list[Beat],
    shares: list[NodeRange],
    late_shares: list[NodeRange],
) -> None:
    async with database.write() as session:
        await clear(session)
        await log_heartbeats(session, beats)
        hours = await metrics_rollup.list_due_hours(session, BEGIN)
        assert hours == sorted({hour for _, hour in compute_history(beats)})
        for hour in hours:
            assert not await metrics_rollup.is_complete(session, hour)
            await roll_up(session, hour, shares)
            assert await metrics_rollup.is_complete(session, hour)
        assert is_equal(await read_history(session), compute_history(beats))
        await log_heartbeats(session, late)
        for n in range(5):
            hour = BEGIN + n * HOUR
            is_late = any(hour == changed for _, changed in compute_history(late))
            assert await metrics_rollup.is_complete(session, hour) is not is_late
            if is_late:
                await roll_up(session, hour, late_shares)
        assert await metrics_rollup.list_due_hours(session, BEGIN) == []
        assert is_equal(await read_history(session), compute_history([*beats, *late]))


async def test_hour_is_due_after_it_has_settled(database: Database) -> None:
    settled_at = BEGIN + HOUR + timedelta(seconds=metrics_rollup.SETTLE_SECONDS)
    async with database.write() as session:
        await log_heartbeats(session, [(BEGIN, NODES[0], {}), (BEGIN + HOUR, NODES[0], {})])
        for now, hours in ((settled_at - timedelta(microseconds=1), []), (settled_at, [BEGIN])):
            await session.execute(
                text("SELECT set_config('node_registry.now', :now, true)"), {"now": now.isoformat()}
            )
            assert await metrics_rollup.list_due_hours(session, BEGIN - 100 * HOUR) == hours
        assert await metrics_rollup.list_due_hours(session, BEGIN + HOUR) == []


async def test_late_heartbeats_do_not_replace_the_history_of_dropped_ones(
    database: Database,
) -> None:
    all_nodes = [(UUID(int=0), UUID(int=2**128 - 1))]
    async with database.write() as session:
        await log_heartbeats(session, [(BEGIN, NODES[0], {"cpu_percent": n}) for n in (1, 2, 3)])
        await roll_up(session, BEGIN, all_nodes)
        before = await read_history(session)
        await session.execute(text("DELETE FROM heartbeat_log"))
        await metrics_rollup.unmark_rolled_up(session, Partition("", BEGIN, BEGIN + HOUR))
        late = [(BEGIN, NODES[0], {"cpu_percent": 99}), (BEGIN, NODES[1], {"cpu_percent": 5})]
        await log_heartbeats(session, late)
        assert await metrics_rollup.list_due_hours(session, BEGIN) == [BEGIN]
        await roll_up(session, BEGIN, all_nodes)
        assert await metrics_rollup.is_complete(session, BEGIN)
        assert is_equal(await read_history(session), before | compute_history(late[1:]))


async def test_large_hour_is_split_without_a_gap_or_an_overlap(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_rollup, "_MAX_ROWS_AT_ONCE", 3)
    async with database.write() as session:
        assert await metrics_rollup.split_nodes(session, BEGIN) == [
            (UUID(int=0), UUID(int=2**128 - 1))
        ]
        await log_heartbeats(
            session, [(BEGIN + n * HOUR / 10, NODES[n % 3], {}) for n in range(10)]
        )
        shares = await metrics_rollup.split_nodes(session, BEGIN)
    assert len(shares) == 4
    assert [shares[0][0].int, shares[-1][1].int] == [0, 2**128 - 1]
    assert all(before[1].int + 1 == after[0].int for before, after in pairwise(shares))


async def test_only_one_process_rolls_up_at_a_time(database: Database) -> None:
    async with database.write() as first, database.write() as second:
        assert await metrics_rollup.try_lock(first)
        assert not await metrics_rollup.try_lock(second)
    async with database.write() as second:
        assert await metrics_rollup.try_lock(second)


async def test_finding_and_reading_an_hour_reads_only_that_hour(
    database: Database,
) -> None:
    """The other hours of its day, and earlier days, are not read."""
    [(today,)] = await fetch_rows(database, "SELECT date_trunc('day', now())")
    async with database.write() as session:
        await session.execute(
            text(
                "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                " SELECT CAST(:today AS timestamptz) + n * interval '1s', gen_random_uuid(),"
                " 'online'"
                " FROM generate_series(1, 86399, 4) AS n"
            ),
            {"today": today},
        )
    async with database.read() as session:
        await session.execute(text("VACUUM ANALYZE heartbeat_log"))
    statements = {
        metrics_rollup._LIST_DUE_HOURS: {"begin": today, "settle": -86400.0},  # noqa: SLF001  # the statement that the product runs
        metrics_rollup._COUNT_HEARTBEATS: {"hour": today},  # noqa: SLF001  # as above
        metrics_rollup._ESTIMATE_ROWS: {"hour": today},  # noqa: SLF001  # as above
        metrics_rollup._ROLL_UP: {  # noqa: SLF001  # as above
            "hour": today,
            "first_node": UUID(int=0),
            "last_node": UUID(int=2**128 - 1),
        },
    }
    for statement, parameters in statements.items():
        async with database.write() as session:
            await partitions.make_month_partition(session, today)
            explain = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
            [plan] = (await session.execute(explain, parameters)).scalar_one()
        assert 0 < sum(list_rows_read(plan["Plan"])) <= 21600 / 24 + 24


def list_rows_read(plan: dict[str, Any]) -> list[int]:
    """Return the number of log rows that each scan read, filtered ones included."""
    row_counts = [count for child in plan.get("Plans", []) for count in list_rows_read(child)]
    if "heartbeat_log" in plan.get("Relation Name", ""):
        per_loop = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        row_counts.append(round(per_loop * plan["Actual Loops"]))
    return row_counts
