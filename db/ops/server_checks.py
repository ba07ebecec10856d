"""Checks of a PostgreSQL server, whatever its database contains."""

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from db.ops.check_result import Check, Verdict, report_fault, report_ok, report_warning

SUPPORTED_VERSIONS = range(15, 19)
"""Major versions of PostgreSQL on which the registry is tested."""

_MAX_USED_SHARE = 0.9
_MAX_LAG_SECONDS = 30
_MAX_LAG_BYTES = 1 << 30


async def check_version(session: AsyncSession) -> Verdict:
    number = await session.scalar(text("SELECT current_setting('server_version')"))
    major = int(str(number).partition(".")[0])
    if major in SUPPORTED_VERSIONS:
        return report_ok(f"PostgreSQL {number}")
    supported = f"{SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]} are the tested versions"
    if major > SUPPORTED_VERSIONS[-1]:
        return report_warning(f"PostgreSQL {number}; {supported}")
    return report_fault(f"PostgreSQL {number}; {supported}: upgrade to one of them")


_WRITE_STATE = text("""
SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
       array(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes', 'synchronous_commit']) name
             WHERE current_setting(name) = 'off')
""")


async def check_writable(session: AsyncSession) -> Verdict:
    standby, read_only, disabled = (await session.execute(_WRITE_STATE)).one()
    if standby:
        return report_fault(
            "is a standby, which accepts no writes: connect to the primary, or promote this one"
        )
    if read_only:
        return report_fault(
            "accepts no writes: set default_transaction_read_only to off, for the role and the"
            " database too"
        )
    if disabled:
        return report_fault(
            f"{', '.join(disabled)} off: acknowledged writes may be lost when the machine"
            " fails; set it to on"
        )
    return report_ok("accepts writes, and keeps what it acknowledged")


_CONNECTIONS = text("""
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
       CAST(current_setting('max_connections') AS int)
           - CAST(current_setting('superuser_reserved_connections') AS int)
""")


def make_connections_check(needed: int) -> Check:
    """Return the check that the server allows the `needed` connections of a registry here."""

    async def check(session: AsyncSession) -> Verdict:
        used, allowed = (await session.execute(_CONNECTIONS)).one()
        summary = f"{used} of {allowed} in use, a registry on this machine opens at most {needed}"
        if needed > allowed:
            return report_fault(
                f"{summary}: raise max_connections, or lower NODE_REGISTRY_WORKERS or _DB_POOL_SIZE"
            )
        if used > _MAX_USED_SHARE * allowed:
            return report_warning(
                f"{summary}: raise max_connections, or see pg_stat_activity for their owners"
            )
        return report_ok(summary)

    return check


_LIST_BROKEN_SLOTS = text("""
SELECT slot_name, coalesce(wal_status, 'unknown'),
       CAST(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0) AS float)
FROM pg_replication_slots
WHERE NOT active OR wal_status IN ('unreserved', 'lost')
ORDER BY slot_name
""")
_LIST_STANDBYS = text("""
SELECT application_name,
       CAST(coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0) AS float),
       CAST(coalesce(extract(epoch FROM replay_lag), 0) AS float), sync_state IN ('sync', 'quorum')
FROM pg_stat_replication
WHERE state = 'streaming'
ORDER BY application_name
""")


async def check_replication(session: AsyncSession) -> Verdict:
    """Check slots and standbys. A role without pg_monitor sees no lag, and gets no warning."""
    slots = (await session.execute(_LIST_BROKEN_SLOTS)).all()
    for name, status, _ in slots:
        if status in {"unreserved", "lost"}:
            return report_fault(
                f"slot {name}: the WAL that its standby needs is {status}: rebuild the standby"
            )
    standbys = (await session.execute(_LIST_STANDBYS)).all()
    synchronous_names = await session.scalar(
        text("SELECT current_setting('synchronous_standby_names')")
    )
    if synchronous_names and not any(synchronous for *_, synchronous in standbys):
        return report_fault(
            f"every write waits for a standby of {synchronous_names!r}, and none is connected:"
            " start one, or empty synchronous_standby_names"
        )
    for name, _, retained in slots:
        return report_warning(
            f"slot {name} is not used and keeps {_format_megabytes(retained)} of WAL: start its"
            " standby, or drop it with pg_drop_replication_slot"
        )
    for name, behind, seconds, _ in standbys:
        if behind > _MAX_LAG_BYTES or seconds > _MAX_LAG_SECONDS:
            return report_warning(
                f"standby {name} is {_format_megabytes(behind)} and {seconds:.0f} s behind:"
                " see its log"
            )
    return report_ok(
        f"{len(standbys)} standbys, none far behind" if standbys else "no standby, no slot"
    )


def _format_megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"
