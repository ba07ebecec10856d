"""A heartbeat log with days of the past, and a disk that is full."""

from uuid import UUID

from sqlalchemy import text

from db.core.database import Database
from db.retention import partitions
from tests.support.fleet import fetch_rows

INSERT_NOISE = """
INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
SELECT date_trunc('day', now()) - days * interval '1 day' + n * interval '1 s', :node, 'online',
       jsonb_build_object('cpu_percent', 7, 'noise', noise)
FROM generate_series(0, 299) AS n,
     LATERAL (SELECT string_agg(gen_random_uuid()::text, '') AS noise
              FROM generate_series(1, 100 + n % 2)) AS random,
     unnest(CAST(:days AS int[])) AS days
"""
DAYS = """
SELECT now()::date - timestamp::date AS day, count(*) FROM heartbeat_log GROUP BY 1 ORDER BY 1
"""


async def log_noise(database: Database, *days: int) -> int:
    """Log a megabyte or so on each day, given as days ago; return the database's size."""
    async with database.write() as session:
        await partitions.make_day_partitions(session)
    async with database.write() as session:
        await session.execute(text(INSERT_NOISE), {"days": days, "node": UUID(int=1)})
        await partitions.make_day_partitions(session)
    return await database.measure_size_bytes()


async def list_days(database: Database) -> list[int]:
    return [day for day, _ in await fetch_rows(database, DAYS)]


FILL_DISK = (
    """
    CREATE FUNCTION fill_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF (SELECT count(*) FROM pg_inherits WHERE inhparent = 'heartbeat_log'::regclass) > 10 THEN
            RAISE EXCEPTION 'could not extend file: No space left' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER fill_disk BEFORE INSERT ON heartbeat_log
    FOR EACH ROW EXECUTE FUNCTION fill_disk()
    """,
)


async def fill_disk(database: Database) -> None:
    """Have the database reject heartbeats while it has more than one day of the past."""
    async with database.write() as session:
        for statement in FILL_DISK:
            await session.execute(text(statement))
