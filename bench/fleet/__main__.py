"""The command `python -m bench.fleet`, which runs a fleet of simulated agents on a registry."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvloop

from bench import report
from bench.fleet.report import compute_findings, format_text
from bench.fleet.scenario import Scenario, run_scenario
from graph.server.file_limits import raise_open_file_limit
from graph.telemetry import logs


@click.command()
@click.option("--nodes", default=10_000, show_default=True, help="Number of agents.")
@click.option("--interval", default=15.0, show_default=True, help="Seconds between heartbeats.")
@click.option("--seconds", default=60.0, show_default=True, help="Duration of the measurement.")
@click.option("--transport", type=click.Choice(["websocket", "http"]), default="websocket")
@click.option(
    "--connections",
    default=0,
    help="Number of connections that the agents share; 0 gives each its own.",
)
@click.option("--fail", default=0.5, show_default=True, help="Percent of the nodes a minute.")
@click.option("--sleep", default=0.5, show_default=True, help="Percent of the nodes a minute.")
@click.option("--restart", is_flag=True, help="Afterwards kill the server with -9 and restart it.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the results to this file as JSON.",
)
def main(json_file: Path | None, **options: Any) -> None:
    """Simulate a fleet of agents. A missed target is reported and is not a failure."""
    scenario = Scenario(**options)
    logs.configure_logging("development", "critical")
    raise_open_file_limit(scenario.nodes)
    environment = report.describe_environment()
    result = uvloop.run(run_scenario(scenario))
    findings = compute_findings(scenario, result)
    click.echo(format_text(scenario, result, findings, environment))
    if json_file is not None:
        document = {
            **environment,
            "terms": asdict(scenario),
            "findings": [asdict(finding) | {"met": finding.is_met} for finding in findings],
            "statuses": result.statuses,
            "transitions": result.transitions,
            "resident": result.memory_samples,
        }
        report.write_json(json_file, document)


if __name__ == "__main__":
    main()
