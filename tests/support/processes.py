"""Programs, such as a registry, in processes of their own."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.live_server import NO_TLS

BIN = Path(sys.executable).parent
SECONDS = 40

# Short intervals, so that a node passes through its statuses within seconds.
FAST = {
    "NODE_REGISTRY_HTTP_PORT": "0",
    "NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "0.3",
    "NODE_REGISTRY_HEARTBEATS_PER_INTERVAL": "1000000",
    "NODE_REGISTRY_HEARTBEAT_GRACE_SECONDS": "0.3",
    "NODE_REGISTRY_SWEEP_INTERVAL_SECONDS": "0.1",
}


@dataclass
class Process:
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for the next printed line that matches; return the match."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS):
            async for raw in self.process.stdout:
                self.lines.append(raw.decode().rstrip())
                if found := re.search(pattern, self.lines[-1]):
                    return found
        raise AssertionError("\n".join(self.lines))

    async def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(SECONDS):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def run_program(*command: str | Path, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield Process(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def run_registry(data_dir: Path, **environment: str) -> AsyncIterator[tuple[Process, str]]:
    """Run a registry on its embedded database; yield the process and its GraphQL URL."""
    settings = FAST | {"NODE_REGISTRY_DATA_DIR": str(data_dir)} | environment
    async with run_program(BIN / "node-registry", "serve", **settings) as process:
        url = (await process.wait_for_line(r"GraphQL +(\S+)")).group(1)
        yield process, url


async def query_until_answered(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """Repeat the request until the registry, which may be starting, answers; return the data."""
    async with httpx.AsyncClient(timeout=5, verify=NO_TLS) as http, asyncio.timeout(SECONDS):
        while True:
            with suppress(httpx.TransportError):
                response = await http.post(url, json={"query": query, "variables": variables})
                body: dict[str, Any] = response.json()
                if "errors" not in body:
                    data: dict[str, Any] = body["data"]
                    return data
            await asyncio.sleep(0.05)
