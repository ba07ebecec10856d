"""Looks the registry's database over: schema, rights, clock, partitions, wear."""

import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.database import Database
from db.core.migrate import SchemaMismatch, require_current_schema
from db.core.tables import Table
from db.ops.check_result import Check, Verdict, fault, ok, warning
from db.retention import partitions

_CLOCKS_MAY_DIFFER_SECONDS = 2
_AT_WORK_SECONDS = 60
_DEAD_ROWS = 10_000
_UPDATES_THAT_TELL = 10_000
_HOT_SHARE = 0.8

# What init-database gives to the role that serves.
_RIGHTS = {
    table.name: "SELECT, INSERT" if table.name == "audit_log" else "SELECT, INSERT, UPDATE, DELETE"
    for table in Table.metadata.sorted_tables
} | {"alembic_version": "SELECT"}


def schema(database: Database) -> Check:
    async def check(_: AsyncSession) -> Verdict:
        try:
            await require_current_schema(database.engine)
        except SchemaMismatch as mismatch:
            return fault(str(mismatch))
        return ok("at this version's")

    return check


_ROLE = text("""
SELECT current_user, rolsuper OR pg_has_role(c.relowner, 'MEMBER')
FROM pg_roles, pg_class c
WHERE rolname = current_user AND c.oid = CAST('nodes' AS regclass)
""")
_LACKS = text("""
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


async def rights(session: AsyncSession) -> Verdict:
    role, owner = (await session.execute(_ROLE)).one()
    terms = {"tables": list(_RIGHTS), "rights": list(_RIGHTS.values())}
    lacking = await session.scalar(_LACKS, terms)
    if lacking:
        return fault(f"{role} lacks {lacking}: run `node-registry init-database` again")
    if owner:
        return ok(f"{role} owns the tables; the role that init-database makes does not")
    return ok(f"{role} may do its work, and owns nothing")


async def clock(session: AsyncSession) -> Verdict:
    """Of the database against this machine's: keys go by the one, tokens of issuers and
    certificates by the other.
    """
    begun = time.time()
    theirs: datetime = (await session.execute(text("SELECT registry_now()"))).scalar_one()
    ours = (begun + time.time()) / 2
    ahead = theirs.timestamp() - ours
    if abs(ahead) <= _CLOCKS_MAY_DIFFER_SECONDS:
        return ok("the database's and this machine's agree")
    stands = f"the database's is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    if await session.scalar(text("SELECT nullif(current_setting('node_registry.now', true), '')")):
        return fault(f"{stands}: node_registry.now is set, take it from the database and the role")
    return fault(f"{stands}: let NTP set both machines'")


_WORK = text("""
SELECT count(*) FILTER (WHERE seen_at > registry_now() - make_interval(secs => :at_work)), mode,
       mode_reason
FROM registry_state LEFT JOIN registry_processes ON true
GROUP BY mode, mode_reason
""")


async def liveness(session: AsyncSession) -> Verdict:
    processes, mode, reason = (await session.execute(_WORK, {"at_work": _AT_WORK_SECONDS})).one()
    at_work = f"{processes or 'no'} process{'' if processes == 1 else 'es'} at work"
    if mode == "protected":
        return warning(
            f"{at_work}, PROTECTED: {reason}; it ends by itself: see why so many fall silent at"
            " once, the network first"
        )
    return ok(at_work)


async def partitions_ahead(session: AsyncSession) -> Verdict:
    begins = {day.begin for day in await partitions.listed(session, "heartbeat_log")}
    now: datetime = (await session.execute(text("SELECT now()"))).scalar_one()
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    missing = [
        f"{day:%Y-%m-%d}"
        for day in (today + timedelta(days=n) for n in range(partitions.DAYS_AHEAD))
        if day not in begins
    ]
    if missing:
        return warning(
            f"heartbeat_log has none for {missing[0]}: a registry makes them as it starts and every"
            " five minutes; start it, or see `upkeep` in its log"
        )
    return ok(f"those of heartbeat_log are there for {partitions.DAYS_AHEAD - 1} days ahead")


async def default_partition(session: AsyncSession) -> Verdict:
    count = await partitions.misplaced(session)
    if count:
        return warning(
            f"{count} heartbeats lie in heartbeat_log_default: a registry moves those of the last"
            " month within five minutes; delete others, they are of a clock that was wrong"
        )
    return ok("empty, as it should be")


_WEAR = text("""
SELECT n_live_tup, n_dead_tup, n_tup_upd, n_tup_hot_upd, c.reloptions,
       (SELECT CONCAT(pid, ', since ', date_trunc('second', xact_start))
        FROM pg_stat_activity
        WHERE backend_xmin IS NOT NULL AND xact_start < now() - interval '10 minutes'
        ORDER BY xact_start LIMIT 1)
FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
WHERE s.relid = CAST('nodes' AS regclass)
""")


async def bloat(session: AsyncSession) -> Verdict:
    """Of the one table that every heartbeat rewrites. The log's partitions are only added to."""
    live, dead, updates, hot, options, holder = (await session.execute(_WEAR)).one()
    share = hot / updates if updates else 1
    says = f"nodes has {dead:,} dead rows beside {live:,}, {share:.0%} of its updates were HOT"
    if "autovacuum_enabled=false" in (options or []):
        return fault(
            f"{says}; autovacuum is off for it: ALTER TABLE nodes RESET (autovacuum_enabled)"
        )
    if dead > max(_DEAD_ROWS, live):
        held = f"end the transaction of process {holder}" if holder else "VACUUM nodes"
        return warning(f"{says}: {held}")
    if updates > _UPDATES_THAT_TELL and share < _HOT_SHARE:
        return warning(f"{says}: drop indexes that are not the registry's own, then VACUUM nodes")
    return ok(says)


CHECKS: dict[str, Check] = {
    "rights": rights,
    "clock": clock,
    "liveness": liveness,
    "partitions": partitions_ahead,
    "default": default_partition,
    "bloat": bloat,
}
