"""Debian's Prometheus, found on this machine or unpacked from its package."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.registry_process import find_free_port

SECONDS = 60


def find_programs(folder: Path) -> Path:
    """Return the folder of `prometheus` and `promtool`; skip the test where they are unavailable.

    The package is unpacked, not installed: that starts no service and does not need root.
    """
    if path := shutil.which("promtool"):
        return Path(path).parent
    unpacked = folder / "usr" / "bin"
    if (unpacked / "promtool").exists():
        return unpacked
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("neither Prometheus nor apt is on this machine: the alerts were not tried")
    try:
        if _run("apt-get", "download", "prometheus", folder=folder) is not None:
            _run("apt-get", "update", folder=folder)  # a new machine has no package lists
        problem = _run("apt-get", "download", "prometheus", folder=folder)
    except subprocess.TimeoutExpired as error:
        problem = str(error)
    packages = sorted(folder.glob("prometheus_*.deb"))
    if problem is not None or not packages:
        pytest.skip(f"apt has no Prometheus, the alerts were not tried: {problem}")
    subprocess.run(["dpkg-deb", "-x", packages[-1], folder], check=True, timeout=SECONDS)
    return unpacked


def _run(*command: str, folder: Path) -> str | None:
    """Run a program; return None when it succeeds, else its error output."""
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return (
        None
        if process.returncode == 0
        else process.stderr.strip()[-300:] or str(process.returncode)
    )


@dataclass(frozen=True)
class Prometheus:
    http: httpx.AsyncClient

    async def query(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series of an expression, now or at a time; an invalid one fails the test."""
        parameters: dict[str, str | float] = {"query": expression}
        if at is not None:
            parameters["time"] = at
        response = await self.http.get("/api/v1/query", params=parameters)
        body = response.json()
        assert body["status"] == "success", (expression, body)
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    async def rules(self) -> Sequence[dict[str, Any]]:
        groups = (await self.http.get("/api/v1/rules")).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@asynccontextmanager
async def run_prometheus(
    programs: Path, config: dict[str, Any], folder: Path
) -> AsyncIterator[Prometheus]:
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{find_free_port()}"
    process = await asyncio.create_subprocess_exec(
        programs / "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=SECONDS) as http:
            async with asyncio.timeout(SECONDS):
                while not await _is_ready(http):
                    await asyncio.sleep(0.05)
            yield Prometheus(http)
    finally:
        process.terminate()
        await process.wait()


async def _is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/-/ready")).status_code == HTTPStatus.OK
    except httpx.TransportError:
        return False
