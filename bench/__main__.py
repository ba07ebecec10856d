"""`python -m bench [NAME…] [--json FILE]`: runs benches, prints one table of what they found."""

from collections.abc import Sequence
from pathlib import Path

import click
import orjson
import uvloop

from bench import report
from bench.discovery import measure_discovery
from bench.fan_out import measure_fan_out
from bench.heartbeats import measure_heartbeats
from bench.latency import measure_latency
from bench.memory import measure_memory
from bench.results import Bench, Result
from bench.storage import measure_storage
from graph.server.file_limits import allow_files_for
from graph.telemetry import logs

BENCHES: dict[str, Bench] = {
    "fan-out": measure_fan_out,
    "memory": measure_memory,
    "latency": measure_latency,
    "discovery": measure_discovery,
    "heartbeats": measure_heartbeats,
    "storage": measure_storage,
}

_MAX_CONNECTIONS = 8000


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, hidden=True)
def main(names: Sequence[str], json_file: Path | None, *, quick: bool) -> None:
    """Measure the registry beside its limits; all benches, or those that are named.

    A target that is missed is told, and is no failure.
    """
    logs.configure("development", "error")
    allow_files_for(_MAX_CONNECTIONS)
    under = report.describe_environment()
    found = uvloop.run(_run_benches(names or list(BENCHES), quick=quick))
    click.echo(report.format_text([row for rows in found.values() for row in rows], under))
    if json_file is not None:
        document = report.build_document(found, under)
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


async def _run_benches(names: Sequence[str], *, quick: bool) -> dict[str, list[Result]]:
    """By bench."""
    found: dict[str, list[Result]] = {}
    for name in names:
        found[name] = []
        async for row in BENCHES[name](quick=quick):
            click.echo(f"measured: {row.name}", err=True)
            found[name].append(row)
    return found


if __name__ == "__main__":
    main()
