"""OpenTelemetry is not imported unless tracing is configured."""

import subprocess
import sys


def test_opentelemetry_is_not_imported_without_the_setting() -> None:
    program = (
        "import sys, graph.cli.main, graph.server.uvicorn_server, graph.server.worker;"
        "sys.exit([name for name in sys.modules if name.startswith('opentelemetry')] or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
