"""The benches run from end to end; what they measure here, in a hurry, proves nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench.__main__ import BENCHES
from bench.report import build_document, describe_environment, format_text
from bench.results import Result, Target
from tests.support.paths import ROOT


def ended_well(
    *command: str | Path, within_seconds: float = 100
) -> subprocess.CompletedProcess[str]:
    """`python -m` with that."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=within_seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.timeout(300)  # twenty processes, which a busy machine starts slowly
def test_every_bench_runs_and_tells_its_rows_as_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = ended_well("bench", "--quick", "--json", file, within_seconds=280)
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document.keys() == {"machine", "versions", "settings", "rows"}
    assert {row["bench"] for row in document["rows"]} == BENCHES.keys()
    for row in document["rows"]:
        assert row["name"] in done.stdout
        # None where a clock did not tick so soon.
        told = row["ratio"]["low"], row["ratio"]["median"], row["ratio"]["high"]
        assert None in told or told == tuple(sorted(told))
        assert row["met"] in {None, True, False}


def test_a_limit_too_small_to_be_measured_meets_no_target() -> None:
    row = Result("time", "µs", [10], "the least", [0], Target("ratio", "at most", 1.1))
    assert row.is_met is False
    assert " nan (nan..nan) " in format_text([row], describe_environment())
    [told] = json.loads(orjson.dumps(build_document({"one": [row]}, describe_environment())))[
        "rows"
    ]
    assert told["ratio"] == {"median": None, "low": None, "high": None}


def test_fleet_survives_its_troubles_and_a_kill_of_its_registry(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    fleet = ("--nodes", "40", "--interval", "0.3", "--seconds", "1")
    troubles = ("--fail", "200", "--sleep", "200", "--restart")
    done = ended_well("bench.fleet", *fleet, *troubles, "--json", file)
    assert "Traceback" not in done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    found = {finding["name"]: finding["value"] for finding in document["findings"]}
    assert all(name in done.stdout for name in found)
    assert found["heartbeats"] > 0
    assert found["errors that no agent retries"] == 0
    assert found["not back by then"] == 0
    assert sum(document["statuses"].values()) == 40
    assert document["transitions"]["new to online, registered"] == 40


def test_soak_tells_the_memory_when_warm_and_at_the_end() -> None:
    short = ("--nodes", "50", "--parts", "2", "--seconds", "0.1")
    done = ended_well("bench.soak", *short)
    assert re.fullmatch(r".+ MB when warm, .+ MB 0.2 s later", done.stdout.splitlines()[-1])
    assert len(re.findall(r"\bMB, [\d,]+ and [\d,]+ and [\d,]+ answers/s", done.stdout)) == 6
