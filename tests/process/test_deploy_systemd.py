"""The units of deploy/systemd, as systemd itself judges them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UNITS = ROOT / "deploy" / "systemd"
# Of ten: what systemd says of a service that nothing restrains is 9.6.
MOST_EXPOSED = {"node-agent.service": 2.0, "node-registry.service": 1.5}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


@needs_systemd
@pytest.mark.parametrize(("name", "most"), MOST_EXPOSED.items())
def test_service_can_do_little_but_its_work(name: str, most: float) -> None:
    rated = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            f"--threshold={most * 10:.0f}",
            UNITS / name,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout


@needs_systemd
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_unit_is_understood_to_the_last_line(name: str, tmp_path: Path) -> None:
    """Its program is elsewhere here."""
    text = (UNITS / name).read_text()
    here = "\n".join(
        f"ExecStart={shutil.which('true')}" if line.startswith("ExecStart=") else line
        for line in text.splitlines()
    )
    (tmp_path / name).write_text(here)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert name not in checked.stderr
