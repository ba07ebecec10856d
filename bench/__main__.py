"""The command `python -m bench [NAME…] [--json FILE]`, which runs benches and prints one table."""

from collections.abc import Sequence
from pathlib import Path

import click
import uvloop

from bench import report
from bench.discovery import measure_discovery
from bench.fan_out import measure_fan_out
from bench.heartbeats import measure_heartbeats
from bench.latency import measure_latency
from bench.memory import measure_memory
from bench.results import Bench, Result
from bench.storage import measure_storage
from graph.server.file_limits import raise_open_file_limit
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
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the results to this file as JSON.",
)
@click.option("--quick", is_flag=True, hidden=True)
def main(names: Sequence[str], json_file: Path | None, *, quick: bool) -> None:
    """Measure the registry next to its limits.

    Run all benches, or only those named. A missed target is reported and is not a failure.
    """
    logs.configure_logging("development", "error")
    raise_open_file_limit(_MAX_CONNECTIONS)
    environment = report.describe_environment()
    results = uvloop.run(_run_benches(names or list(BENCHES), quick=quick))
    all_results = [result for bench_results in results.values() for result in bench_results]
    click.echo(report.format_text(all_results, environment))
    if json_file is not None:
        report.write_json(json_file, report.build_document(results, environment))


async def _run_benches(names: Sequence[str], *, quick: bool) -> dict[str, list[Result]]:
    """Return the results by the name of their bench."""
    results: dict[str, list[Result]] = {}
    for name in names:
        results[name] = []
        async for result in BENCHES[name](quick=quick):
            click.echo(f"measured: {result.name}", err=True)
            results[name].append(result)
    return results


if __name__ == "__main__":
    main()
