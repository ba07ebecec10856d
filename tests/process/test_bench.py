"""The benches, run from end to end; figures measured this quickly mean nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench.__main__ import BENCHES
from bench.report import build_document, describe_environment, format_text
from bench.results import Result, Target
from tests.support.clusters import temporary_folder
from tests.support.paths import ROOT


def run_module(
    *command: str | Path, timeout_seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with the command, which must succeed, and return what it printed."""
    with temporary_folder() as folder:  # in memory, where fsync costs nothing
        process = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    return process


@pytest.mark.timeout(300)  # twenty processes, which a busy machine starts slowly
def test_every_bench_runs_and_writes_its_results_as_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    process = run_module("bench", "--quick", "--json", file, timeout_seconds=280)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document.keys() == {"machine", "versions", "settings", "rows"}
    assert {row["bench"] for row in document["rows"]} == BENCHES.keys()
    for row in document["rows"]:
        assert row["name"] in process.stdout
        ratios = row["ratio"]["low"], row["ratio"]["median"], row["ratio"]["high"]
        # A ratio is None when its limit took less than a tick of the clock.
        assert None in ratios or ratios == tuple(sorted(ratios))
        assert row["met"] in {None, True, False}


def test_limit_too_small_to_measure_meets_no_target() -> None:
    result = Result("time", "µs", [10], "the least", [0], Target("ratio", "at most", 1.1))
    assert result.is_met is False
    assert " nan (nan..nan) " in format_text([result], describe_environment())
    document = build_document({"one": [result]}, describe_environment())
    [row] = json.loads(orjson.dumps(document))["rows"]
    assert row["ratio"] == {"median": None, "low": None, "high": None}


def test_fleet_survives_faults_and_a_kill_of_its_registry(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    fleet = ("--nodes", "40", "--interval", "0.3", "--seconds", "1")
    faults = ("--fail", "200", "--sleep", "200", "--restart")
    process = run_module("bench.fleet", *fleet, *faults, "--json", file)
    assert "Traceback" not in process.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    values = {finding["name"]: finding["value"] for finding in document["findings"]}
    assert all(name in process.stdout for name in values)
    assert values["heartbeats"] > 0
    assert values["errors that no agent retries"] == 0
    assert values["not back by then"] == 0
    assert sum(document["statuses"].values()) == 40
    assert document["transitions"]["new to online, registered"] == 40


def test_soak_reports_the_memory_when_warm_and_at_the_end() -> None:
    options = ("--nodes", "50", "--parts", "2", "--seconds", "0.1")
    output = run_module("bench.soak", *options).stdout
    assert re.fullmatch(r".+ MB when warm, .+ MB 0.2 s later", output.splitlines()[-1])
    assert len(re.findall(r"\bMB, [\d,]+ and [\d,]+ and [\d,]+ answers/s", output)) == 6
