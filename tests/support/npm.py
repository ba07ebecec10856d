"""The npm packages of the tests: reference clients of protocols and a page checker."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
PACKAGES = Path(__file__).parent / "npm_packages"


def install_package(name: str, folder: Path) -> Path:
    """Return a copy of npm_packages/NAME with its dependencies; skip if npm cannot install them."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm is not on this machine: {name} was not tried")
    shutil.copytree(PACKAGES / name, folder, dirs_exist_ok=True)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"npm cannot install what {name} needs: {done.stderr.strip()[-300:]}")
    return folder


async def play_scenario(folder: Path, scenario: str, url: str) -> Any:
    """Run a scenario in client.mjs; return the JSON that it prints."""
    process = await asyncio.create_subprocess_exec(
        *("node", folder / "client.mjs", scenario, url), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    return json.loads(output)
