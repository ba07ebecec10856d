"""Logs contain neither tokens nor local variables."""

import subprocess
import sys

import pytest

FAULT = """
import structlog
from graph.telemetry import logs

logs.configure_logging("{environment}", "info")


def fail() -> None:
    token = "a " + "secret"
    raise RuntimeError("failed")


try:
    fail()
except RuntimeError as error:
    structlog.get_logger().error("request.failed", exc_info=error)
"""


@pytest.mark.parametrize("environment", ["development", "production"])
def test_a_logged_fault_shows_where_it_happened_but_no_local_variable(environment: str) -> None:
    """Local variables hold requests, and formatting deep ones blocked the server for minutes."""
    source = FAULT.format(environment=environment)
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "request.failed" in run.stderr
    assert "RuntimeError" in run.stderr
    assert "fail" in run.stderr
    assert "a secret" not in run.stderr
