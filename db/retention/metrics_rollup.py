"""The roll-up of an hour's heartbeats into metrics_history: each measure's minimum, mean, maximum.

An hour is rolled up when it is over, and again if more heartbeats of it arrived since. It is always
read as a whole, so it does not matter which process did it before, or how far.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.tables import MEASURES
from db.retention import partitions
from db.retention.partitions import Partition

SETTLE_SECONDS = 60
"""How long after its end an hour is rolled up; a heartbeat committed later is counted later."""

_MAX_ROWS_AT_ONCE = 200_000
_UUID_COUNT = 2**128
_LOCK = "node_registry_rollup"

_LIST_DUE_HOURS = text("""
SELECT h.hour
FROM generate_series(
    CAST(:begin AS timestamptz),
    date_trunc('hour', registry_now() - make_interval(secs => :settle)) - interval '1h',
    interval '1h'
) AS h (hour)
CROSS JOIN LATERAL (
    SELECT FROM heartbeat_log l
    WHERE l.timestamp >= h.hour AND l.timestamp < h.hour + interval '1h'
    LIMIT 1
) heard
WHERE NOT EXISTS (SELECT FROM rolled_up_hours r WHERE r.hour = h.hour)
ORDER BY h.hour
""")

_COUNT_HEARTBEATS = text("""
SELECT count(*) AS logged,
       (SELECT heartbeats FROM rolled_up_hours WHERE hour = :hour) AS rolled_up
FROM heartbeat_log
WHERE timestamp >= :hour AND timestamp < CAST(:hour AS timestamptz) + interval '1h'
""")

# Ids follow the order of time, or nearly so.
_ESTIMATE_ROWS = text("""
SELECT coalesce(abs(newest.id - oldest.id) + 1, 0)
FROM (SELECT id FROM heartbeat_log
      WHERE timestamp >= :hour AND timestamp < CAST(:hour AS timestamptz) + interval '1h'
      ORDER BY timestamp, id LIMIT 1) oldest,
     (SELECT id FROM heartbeat_log
      WHERE timestamp >= :hour AND timestamp < CAST(:hour AS timestamptz) + interval '1h'
      ORDER BY timestamp DESC, id DESC LIMIT 1) newest
""")


def _make_number_sql(value: str) -> str:
    """Return SQL for a JSON value as a number; NULL for other types and numbers the API rejects."""
    return f"""
    CASE jsonb_typeof({value})
        WHEN 'number' THEN CASE WHEN abs(CAST({value} AS numeric)) <= 1e15
                                THEN CAST({value} AS double precision) END
    END
    """


_SCALAR_MEASURES = tuple(measure for measure in MEASURES if not measure.startswith("gpu_"))
_AGGREGATES = ("min", "avg", "max")
_COLUMNS = [f"{measure}_{what}" for measure in MEASURES for what in _AGGREGATES]

# OFFSET 0 keeps PostgreSQL from extracting each value from its document several times.
_ROLL_UP = text(f"""
WITH rolled_up AS (
    SELECT node_id, count(*) AS heartbeats,
           {", ".join(f"{what}({m}) AS {m}_{what}" for m in MEASURES for what in _AGGREGATES)}
    FROM (
        SELECT node_id,
               {", ".join(f"{_make_number_sql(m)} AS {m}" for m in _SCALAR_MEASURES)}, gpu.*
        FROM (
            SELECT node_id, metrics->'gpus' AS gpus,
                   {", ".join(f"metrics->'{m}' AS {m}" for m in _SCALAR_MEASURES)}
            FROM heartbeat_log
            WHERE timestamp >= :hour AND timestamp < CAST(:hour AS timestamptz) + interval '1h'
              AND node_id BETWEEN :first_node AND :last_node
            OFFSET 0
        ) reported
        CROSS JOIN LATERAL (
            SELECT avg({_make_number_sql("utilization_percent")}) AS gpu_utilization_percent,
                   max({_make_number_sql("memory_free_mb")}) AS gpu_memory_free_mb,
                   max({_make_number_sql("temperature_celsius")}) AS gpu_temperature_celsius
            FROM (
                SELECT g->'utilization_percent' AS utilization_percent,
                       g->'memory_free_mb' AS memory_free_mb,
                       g->'temperature_celsius' AS temperature_celsius
                FROM jsonb_array_elements(CASE jsonb_typeof(gpus) WHEN 'array' THEN gpus END) AS g
                OFFSET 0
            ) g
        ) gpu
        OFFSET 0
    ) measured
    GROUP BY node_id
), kept AS (
    INSERT INTO metrics_history AS existing (node_id, hour, heartbeats, {", ".join(_COLUMNS)})
    SELECT node_id, :hour, heartbeats, {", ".join(_COLUMNS)} FROM rolled_up
    ON CONFLICT (node_id, hour) DO UPDATE
    SET heartbeats = excluded.heartbeats, {", ".join(f"{c} = excluded.{c}" for c in _COLUMNS)}
    WHERE excluded.heartbeats > existing.heartbeats
)
SELECT coalesce(sum(heartbeats), 0) FROM rolled_up
""")  # noqa: S608  # only our own names

_MARK_ROLLED_UP = text("""
INSERT INTO rolled_up_hours (hour, heartbeats) VALUES (:hour, :heartbeats)
ON CONFLICT (hour) DO UPDATE SET heartbeats = excluded.heartbeats
""")

_UNMARK_ROLLED_UP = text("DELETE FROM rolled_up_hours WHERE hour >= :begin AND hour < :end")

NodeRange = tuple[UUID, UUID]
"""The first and the last id of a range of nodes."""


async def list_due_hours(session: AsyncSession, begin: datetime) -> Sequence[datetime]:
    """Return the hours since `begin` that are over, have heartbeats and were never rolled up."""
    return (
        await session.scalars(_LIST_DUE_HOURS, {"begin": begin, "settle": SETTLE_SECONDS})
    ).all()


async def is_complete(session: AsyncSession, hour: datetime) -> bool:
    """Return whether the roll-up counts every heartbeat that the log has of that hour."""
    count = (await session.execute(_COUNT_HEARTBEATS, {"hour": hour})).one()
    return bool(count.logged == (count.rolled_up or 0))


async def split_nodes(session: AsyncSession, hour: datetime) -> list[NodeRange]:
    """Return the ranges of nodes that `roll_up` should take one at a time.

    A statement must not take longer than a few seconds: while it runs PostgreSQL removes no old row
    version, and updates of `nodes` soon find no room on the page of the row that they replace.
    """
    rows = await session.scalar(_ESTIMATE_ROWS, {"hour": hour}) or 0
    count = 1 + rows // _MAX_ROWS_AT_ONCE
    bounds = [_UUID_COUNT * n // count for n in range(count + 1)]
    return [(UUID(int=first), UUID(int=end - 1)) for first, end in pairwise(bounds)]


async def try_lock(session: AsyncSession) -> bool:
    """Lock the roll-up for this transaction; return False if another process holds the lock."""
    return bool(await session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext(_LOCK)))))


async def roll_up(session: AsyncSession, hour: datetime, nodes: NodeRange) -> int:
    """Roll up the hour of a range of nodes and return how many heartbeats were read.

    An existing roll-up is replaced only by one of more heartbeats, because part of the log may have
    been dropped since.
    """
    await partitions.make_month_partition(session, hour)
    parameters = {"hour": hour, "first_node": nodes[0], "last_node": nodes[1]}
    return int(await session.scalar(_ROLL_UP, parameters) or 0)


async def mark_rolled_up(session: AsyncSession, hour: datetime, heartbeats: int) -> None:
    """Record that the hour is rolled up, with the number of heartbeats of all ranges together."""
    await session.execute(_MARK_ROLLED_UP, {"hour": hour, "heartbeats": heartbeats})


async def unmark_rolled_up(session: AsyncSession, partition: Partition) -> None:
    """Forget that the hours of a partition are rolled up, when it is dropped."""
    parameters = {"begin": partition.begin, "end": partition.end}
    await session.execute(_UNMARK_ROLLED_UP, parameters)
