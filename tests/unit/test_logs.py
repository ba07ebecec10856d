"""Logs contain neither tokens nor local variables."""

import subprocess
import sys

import pytest

FAILING_PROGRAM = """
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
def test_a_logged_error_has_a_traceback_without_local_variables(environment: str) -> None:
    """Local variables hold requests, and formatting deep ones blocked the server for minutes."""
    source = FAILING_PROGRAM.format(environment=environment)
    process = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert "request.failed" in process.stderr
    assert "RuntimeError" in process.stderr
    assert "fail" in process.stderr
    assert "a secret" not in process.stderr
