"""Tracing that is not asked for costs nothing, not even an import."""

import subprocess
import sys


def test_without_the_setting_nothing_of_it_is_imported() -> None:
    program = (
        "import sys, graph.cli.main, graph.server.uvicorn_server, graph.server.worker;"
        "sys.exit([name for name in sys.modules if name.startswith('opentelemetry')] or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
