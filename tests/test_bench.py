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
