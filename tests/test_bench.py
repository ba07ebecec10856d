"""The benches run from end to end; what they measure here, in a hurry, proves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import BENCHES

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_runs_and_tells_its_rows_as_json(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", name, "--quick", "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document.keys() == {"machine", "versions", "settings", "rows"}
    assert document["rows"]
    for row in document["rows"]:
        assert row["name"] in done.stdout
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["met"] in {None, True, False}


def test_fleet_survives_its_troubles_and_a_kill_of_its_registry(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    troubled = ("--nodes", "40", "--interval", "1", "--fail", "100", "--sleep", "100", "--restart")
    done = subprocess.run(
        [sys.executable, "-m", "bench.fleet", *troubled, "--seconds", "3", "--json", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    found = {finding["name"]: finding["value"] for finding in document["findings"]}
    assert all(name in done.stdout for name in found)
    assert found["heartbeats"] > 0
    assert found["errors that no agent retries"] == 0
    assert found["not back by then"] == 0
    assert sum(document["statuses"].values()) == 40
    assert document["transitions"]["new to online, registered"] == 40
