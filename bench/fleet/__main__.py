"""`python -m bench.fleet`: a fleet of simulated agents on a registry, and what it makes of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson
import uvloop

from bench import report
from bench.fleet.report import compute_findings, format_text
from bench.fleet.scenario import Scenario, run_scenario
from graph.server.file_limits import allow_files_for
from graph.telemetry import logs


@click.command()
@click.option("--nodes", default=10_000, show_default=True)
@click.option("--interval", default=15.0, show_default=True, help="Seconds between heartbeats.")
@click.option("--seconds", default=60.0, show_default=True, help="For how long it is measured.")
@click.option("--transport", type=click.Choice(["websocket", "http"]), default="websocket")
@click.option("--connections", default=0, help="Websockets that they share; each its own: 0.")
@click.option("--fail", default=0.5, show_default=True, help="Percent of the nodes a minute.")
@click.option("--sleep", default=0.5, show_default=True, help="Percent of the nodes a minute.")
@click.option("--restart", is_flag=True, help="Then kill the server with -9 and start it anew.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(json_file: Path | None, **given: Any) -> None:
    """Simulate a fleet of agents. A target that is missed is told, and is no failure."""
    terms = Scenario(**given)
    logs.configure_logging("development", "critical")
    allow_files_for(terms.nodes)
    under = report.describe_environment()
    story = uvloop.run(run_scenario(terms))
    found = compute_findings(terms, story)
    click.echo(format_text(terms, story, found, under))
    if json_file is not None:
        document = {
            **under,
            "terms": asdict(terms),
            "findings": [asdict(finding) | {"met": finding.is_met} for finding in found],
            "statuses": story.statuses,
            "transitions": story.transitions,
            "resident": story.memory_samples,
        }
        json_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
