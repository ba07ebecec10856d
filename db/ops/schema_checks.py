"""Checks of the registry's database: schema, privileges, clock, partitions, bloat."""

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.migrate import SchemaMismatch, require_current_schema
from db.core.tables import Table
from db.ops.check_result import Check, Verdict, report_fault, report_ok, report_warning
from db.retention import partitions

_MAX_CLOCK_DIFFERENCE_SECONDS = 2
_PROCESS_SILENT_SECONDS = 60
_MAX_DEAD_ROWS = 10_000
_MIN_UPDATES = 10_000
_MIN_HOT_SHARE = 0.8

# What init-database grants to the role that serves.
_REQUIRED_PRIVILEGES = {
    table.name: "SELECT, INSERT" if table.name == "audit_log" else "SELECT, INSERT, UPDATE, DELETE"
    for table in Table.metadata.sorted_tables
} | {"alembic_version": "SELECT"}


def make_schema_check(database: Database) -> Check:
    async def check(_: AsyncSession) -> Verdict:
        try:
            await require_current_schema(database.engine)
        except SchemaMismatch as mismatch:
            return report_fault(str(mismatch))
        return report_ok("is this version's")

    return check


_ROLE = text("""
SELECT current_user, rolsuper OR pg_has_role(c.relowner, 'MEMBER')
FROM pg_roles, pg_class c
WHERE rolname = current_user AND c.oid = CAST('nodes' AS regclass)
""")
_FIND_MISSING_PRIVILEGE = text("""
SELECT r || ' on ' || t
FROM unnest(CAST(:tables AS text[]), CAST(:rights AS text[])) AS wanted (t, rights),
     unnest(string_to_array(rights, ', ')) AS r
WHERE to_regclass(t) IS NOT NULL AND NOT has_table_privilege(t, r)
UNION ALL
SELECT 'EXECUTE on ' || CAST(p.oid AS regprocedure)
FROM pg_proc p
WHERE p.pronamespace = CAST(current_schema() AS regnamespace) AND p.prosecdef
  AND NOT has_function_privilege(p.oid, 'EXECUTE')
LIMIT 1
""")


async def check_privileges(session: AsyncSession) -> Verdict:
    role, owner = (await session.execute(_ROLE)).one()
    parameters = {
        "tables": list(_REQUIRED_PRIVILEGES),
        "rights": list(_REQUIRED_PRIVILEGES.values()),
    }
    missing = await session.scalar(_FIND_MISSING_PRIVILEGE, parameters)
    if missing:
        return report_fault(f"{role} lacks {missing}: run `node-registry init-database` again")
    if owner:
        return report_ok(f"{role} owns the tables; the role that init-database makes does not")
    return report_ok(f"{role} has the privileges it needs, and owns nothing")


async def check_clock(session: AsyncSession) -> Verdict:
    """Compare the database's clock, by which tokens expire, with this machine's.

    JWTs and certificates expire by the latter.
    """
    begun = time.time()
    database_time: datetime = (await session.execute(text("SELECT registry_now()"))).scalar_one()
    local_time = (begun + time.time()) / 2
    ahead_seconds = database_time.timestamp() - local_time
    if abs(ahead_seconds) <= _MAX_CLOCK_DIFFERENCE_SECONDS:
        return report_ok("the database's and this machine's agree")
    direction = "ahead of" if ahead_seconds > 0 else "behind"
    difference = f"the database's is {abs(ahead_seconds):,.1f} s {direction} this machine's"
    if await session.scalar(text("SELECT nullif(current_setting('node_registry.now', true), '')")):
        return report_fault(
            f"{difference}: node_registry.now is set, reset it for the database and the role"
        )
    return report_fault(f"{difference}: synchronize both machines by NTP")


_LIVENESS_STATE = text("""
SELECT count(*) FILTER (WHERE seen_at > registry_now() - make_interval(secs => :silent_after)),
       mode, mode_reason
FROM registry_state LEFT JOIN registry_processes ON true
GROUP BY mode, mode_reason
""")


async def check_liveness(session: AsyncSession) -> Verdict:
    processes, mode, reason = (
        await session.execute(_LIVENESS_STATE, {"silent_after": _PROCESS_SILENT_SECONDS})
    ).one()
    running = f"{processes or 'no'} process{'' if processes == 1 else 'es'} running"
    if mode == "protected":
        return report_warning(
            f"{running}, PROTECTED: {reason}; it ends by itself: find out why so many nodes are"
            " silent at once, beginning with the network"
        )
    return report_ok(running)


async def check_partitions_ahead(session: AsyncSession) -> Verdict:
    begins = {day.begin for day in await partitions.list_partitions(session, "heartbeat_log")}
    now: datetime = (await session.execute(text("SELECT now()"))).scalar_one()
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    missing = [
        f"{day:%Y-%m-%d}"
        for day in (today + timedelta(days=n) for n in range(partitions.DAYS_AHEAD))
        if day not in begins
    ]
    if missing:
        return report_warning(
            f"heartbeat_log has none for {missing[0]}: a registry makes them at its start and every"
            " five minutes; start one, or see `housekeeping.unavailable` in its log"
        )
    return report_ok(f"heartbeat_log has those of {partitions.DAYS_AHEAD - 1} days ahead")


async def check_default_partition(session: AsyncSession) -> Verdict:
    count = await partitions.count_misplaced_heartbeats(session)
    if count:
        return report_warning(
            f"{count} heartbeats are in heartbeat_log_default: a registry moves those of the last"
            " month within five minutes; delete the others, which a wrong clock has caused"
        )
    return report_ok("empty, as it should be")


_NODES_STATISTICS = text("""
SELECT n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd, c.reloptions,
       (SELECT CONCAT(pid, ', since ', date_trunc('second', xact_start))
        FROM pg_stat_activity
        WHERE backend_xmin IS NOT NULL AND xact_start < now() - interval '10 minutes'
        ORDER BY xact_start LIMIT 1)
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.relid = CAST('nodes' AS regclass)
""")


async def check_bloat(session: AsyncSession) -> Verdict:
    """Check `nodes`, which every heartbeat updates. The log's partitions only grow."""
    live, dead, updates, hot, options, holder = (await session.execute(_NODES_STATISTICS)).one()
    share = hot / updates if updates else 1
    summary = f"nodes has {dead:,} dead and {live:,} live rows, {share:.0%} of its updates were HOT"
    if "autovacuum_enabled=false" in (options or []):
        return report_fault(
            f"{summary}; autovacuum is off for it: ALTER TABLE nodes RESET (autovacuum_enabled)"
        )
    if dead > max(_MAX_DEAD_ROWS, live):
        remedy = f"end the transaction of process {holder}" if holder else "VACUUM nodes"
        return report_warning(f"{summary}: {remedy}")
    if updates > _MIN_UPDATES and share < _MIN_HOT_SHARE:
        return report_warning(
            f"{summary}: drop indexes that the registry did not make, then VACUUM nodes"
        )
    return report_ok(summary)


CHECKS: dict[str, Check] = {
    "rights": check_privileges,
    "clock": check_clock,
    "liveness": check_liveness,
    "partitions": check_partitions_ahead,
    "default": check_default_partition,
    "bloat": check_bloat,
}
