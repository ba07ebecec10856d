"""Clients from npm, for the tests that try the registry with a protocol's own reference client."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
HERE = Path(__file__).parent


def installed(name: str, folder: Path) -> Path:
    """The script client.mjs of tests/NAME and what it needs; skips where npm cannot install it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not on this machine: {name} was not tried")
    shutil.copytree(HERE / name, folder, dirs_exist_ok=True)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"npm cannot install what {name} needs: {done.stderr.strip()[-300:]}")
    return folder / "client.mjs"


async def play(client: Path, scenario: str, url: str) -> Any:
    """What the script prints of a scenario, as JSON."""
    process = await asyncio.create_subprocess_exec(
        *("node", client, scenario, url), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    return json.loads(output)
