"""The units of deploy/systemd, checked by systemd-analyze."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UNITS = ROOT / "deploy" / "systemd"
# The exposure on systemd's scale to 10, where a service without restrictions has 9.6.
MOST_EXPOSED = {"node-agent.service": 2.0, "node-registry.service": 1.5}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


@needs_systemd
@pytest.mark.parametrize(("name", "limit"), MOST_EXPOSED.items())
def test_exposure_of_a_service_is_within_its_limit(name: str, limit: float) -> None:
    process = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={limit * 10:.0f}",
            UNITS / name,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout


@needs_systemd
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_systemd_accepts_every_line_of_a_unit(name: str, tmp_path: Path) -> None:
    """Verify the unit with another program, because that of the unit is not on this machine."""
    text = (UNITS / name).read_text()
    runnable = "\n".join(
        f"ExecStart={shutil.which('true')}" if line.startswith("ExecStart=") else line
        for line in text.splitlines()
    )
    (tmp_path / name).write_text(runnable)
    process = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert name not in process.stderr
