"""What the database does with heartbeats by itself, measured by PostgreSQL's pgbench."""

import asyncio
import re
import tempfile
from pathlib import Path

from db.core.database import Database
from db.embedded.server import find_programs_dir

STATEMENT_SIZE = 1000
"""Heartbeats written by one statement of `measure_statements`."""

_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)

_METRICS = (
    '{"cpu_percent": 12.34, "memory_percent": 43.21, "memory_available_mb": 12345.67,'
    ' "disk_percent": 56.78, "load_average": 0.52, "extra": {"uptimeSeconds": 123456}}'
)
_HEARD = "SET last_heartbeat = now(), heard_at = now()"
_LOG = "INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)"


async def measure_single_commits(database: Database, node_count: int, seconds: float) -> float:
    """Return the heartbeats a second of 32 connections, each a transaction of two statements."""
    return await _measure_transactions(
        database,
        f"""
\\set n random(0, {node_count - 1})
BEGIN;
UPDATE nodes {_HEARD}
WHERE node_id = 'node-' || lpad(:n::text, 5, '0') AND removed_at IS NULL;
{_LOG} SELECT now(), id, status, '{_METRICS}' FROM nodes
WHERE node_id = 'node-' || lpad(:n::text, 5, '0') AND removed_at IS NULL;
COMMIT;
""",  # noqa: S608  # nothing in it comes from outside
        connections=32,
        seconds=seconds,
    )


async def measure_statements(database: Database, node_count: int, seconds: float) -> float:
    """Return the heartbeats a second of one connection, written by statements of many each."""
    rate = await _measure_transactions(
        database,
        f"""
\\set first random(0, {node_count - STATEMENT_SIZE})
WITH heard AS (
    UPDATE nodes {_HEARD}
    WHERE removed_at IS NULL AND node_id IN (
        SELECT 'node-' || lpad(n::text, 5, '0')
        FROM generate_series(:first, :first + {STATEMENT_SIZE - 1}) n)
    RETURNING id, status
) {_LOG} SELECT now(), id, status, '{_METRICS}' FROM heard;
""",  # noqa: S608  # as above
        connections=1,
        seconds=seconds,
    )
    return STATEMENT_SIZE * rate


async def _measure_transactions(
    database: Database, script: str, *, connections: int, seconds: float
) -> float:
    """Run a pgbench script and return its transactions a second.

    Raises: ChildProcessError: pgbench failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(find_programs_dir() / "pgbench"),
            *("--no-vacuum", "--protocol=prepared", f"--client={connections}"),
            # pgbench takes whole seconds only.
            f"--time={round(seconds)}" if seconds >= 1 else "--transactions=10",
            f"--file={Path(file.name)}",
            *(f"--host={database.url.query['host']}", f"--port={database.url.query['port']}"),
            *("--username", str(database.url.username), str(database.url.database)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    match = _TPS.search(output.decode())
    if process.returncode or match is None:
        raise ChildProcessError(errors.decode())
    return float(match[1])
