"""The command `node-registry`, run in its own process, or faster in this one."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest.mock import patch

from click.testing import CliRunner
from sqlalchemy import URL

from graph.cli.main import main
from graph.telemetry import logs

Run = Callable[..., Awaitable[tuple[int, str, str]]]

COMMAND = Path(sys.executable).parent / "node-registry"


def make_environment(url: URL) -> dict[str, str]:
    address = url.render_as_string(hide_password=False)
    return {"NODE_REGISTRY_DATABASE_URL": address, "NODE_REGISTRY_HTTP_PORT": "0"}


async def run_process(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command in its own process; return exit status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def run(*arguments: str, stdin: str = "", **environment: str) -> tuple[int, str, str]:
    """Run a command as `run_process` does, but in this process and without its logs."""

    def run_here() -> tuple[int, str, str]:
        with (
            patch.object(logs, "configure_logging"),
            CliRunner().isolation(stdin, environment) as (output, errors, _),
        ):
            try:
                main(arguments)
            except SystemExit as exit_error:
                status = exit_error.code
        assert isinstance(status, int)
        return status, output.getvalue().decode(), errors.getvalue().decode()

    return await asyncio.to_thread(run_here)  # a command brings its own event loop
