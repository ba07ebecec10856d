"""Looks a PostgreSQL server over, whatever its database has in it."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.ops.check_result import Check, Verdict, fault, ok, warning

SUPPORTED = range(15, 19)
"""Major versions of PostgreSQL."""

_NEARLY_ALL = 0.9
_LAG_SECONDS = 30
_LAG_BYTES = 1 << 30


async def version(session: AsyncSession) -> Verdict:
    number = await session.scalar(text("SELECT current_setting('server_version')"))
    major = int(str(number).partition(".")[0])
    if major in SUPPORTED:
        return ok(f"PostgreSQL {number}")
    tried = f"{SUPPORTED[0]} to {SUPPORTED[-1]} are what the registry is tested on"
    if major > SUPPORTED[-1]:
        return warning(f"PostgreSQL {number}; {tried}")
    return fault(f"PostgreSQL {number}; {tried}: move to one of them")


_STATE = text("""
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
       array(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) name
             WHERE current_setting(name) = 'off')
""")


async def writing(session: AsyncSession) -> Verdict:
    standby, read_only, off = (await session.execute(_STATE)).one()
    if standby:
        return fault("is a standby, which takes no writes: name the primary, or promote this one")
    if read_only:
        return fault(
            "takes no writes: set default_transaction_read_only to off, for the role and the"
            " database too"
        )
    if off:
        return fault(
            f"{', '.join(off)} off: what was acknowledged may be lost when the machine fails;"
            " set it to on"
        )
    return ok("takes writes, and keeps what it acknowledged")


_CONNECTIONS = text("""
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       CAST(current_setting('max_connections') AS int)
           - CAST(current_setting('superuser_reserved_connections') AS int)
""")


def connections(wanted: int) -> Check:
    """`wanted` is what the registry's processes on this machine may open."""

    async def check(session: AsyncSession) -> Verdict:
        used, allowed = (await session.execute(_CONNECTIONS)).one()
        says = f"{used} of {allowed} in use, {wanted} are the most that a registry here opens"
        if wanted > allowed:
            return fault(
                f"{says}: raise max_connections, or lower NODE_REGISTRY_WORKERS or _DB_POOL_SIZE"
            )
        if used > _NEARLY_ALL * allowed:
            return warning(f"{says}: raise max_connections, or see in pg_stat_activity whose")
        return ok(says)

    return check


_SLOTS = text("""
SELECT slot_name, coalesce(wal_status, 'unknown'),
       CAST(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0) AS float)
FROM pg_replication_slots
WHERE NOT active OR wal_status IN ('unreserved', 'lost')
ORDER BY slot_name
""")
_STANDBYS = text("""
SELECT application_name,
       CAST(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0) AS float),
       CAST(coalesce(extract(epoch FROM replay_lag), 0) AS float), sync_state IN ('sync', 'quorum')
FROM pg_stat_replication
WHERE state = 'streaming'
ORDER BY application_name
""")


async def replication(session: AsyncSession) -> Verdict:
    """How far standbys are behind a role without pg_monitor does not see; then it is no fault."""
    slots = (await session.execute(_SLOTS)).all()
    for name, status, _ in slots:
        if status in {"unreserved", "lost"}:
            return fault(f"slot {name}: the WAL that its standby needs is {status}: build it anew")
    standbys = (await session.execute(_STANDBYS)).all()
    awaited = await session.scalar(text("SELECT current_setting('synchronous_standby_names')"))
    if awaited and not any(synchronous for *_, synchronous in standbys):
        return fault(
            f"every write waits for a standby out of {awaited!r}, and none is there: start one, or"
            " empty synchronous_standby_names"
        )
    for name, _, retained in slots:
        return warning(
            f"slot {name} is not used and keeps {_megabytes(retained)} of WAL: start its standby,"
            " or drop it with pg_drop_replication_slot"
        )
    for name, behind, seconds, _ in standbys:
        if behind > _LAG_BYTES or seconds > _LAG_SECONDS:
            return warning(
                f"standby {name} is {_megabytes(behind)} and {seconds:.0f} s behind: see its log"
            )
    return ok(f"{len(standbys)} standbys, none far behind" if standbys else "no standby, no slot")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
