"""Programs in processes of their own, and a registry among them."""

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

# The pace of a registry that need not spare anyone: a life takes seconds.
FAST = {
    "NODE_REGISTRY_HTTP_PORT": "0",
    "NODE_REGISTRY_HEARTBEAT_MIN_INTERVAL_SECONDS": "0.3",
    "NODE_REGISTRY_HEARTBEAT_GRACE_SECONDS": "0.3",
    "NODE_REGISTRY_SWEEP_INTERVAL_SECONDS": "0.1",
}


@dataclass
class Process:
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line it prints from now on that matches."""
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
    """A registry on its embedded database, and where its GraphQL is."""
    settings = FAST | {"NODE_REGISTRY_DATA_DIR": str(data_dir)} | environment
    async with run_program(BIN / "node-registry", "serve", **settings) as process:
        url = (await process.line(r"GraphQL +(\S+)")).group(1)
        yield process, url


async def ask_until_answered(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """Repeat the request until the registry, which may be starting, answers."""
    async with httpx.AsyncClient(timeout=5, verify=NO_TLS) as http, asyncio.timeout(SECONDS):
        while True:
            with suppress(httpx.TransportError):
                response = await http.post(url, json={"query": query, "variables": variables})
                body: dict[str, Any] = response.json()
                if "errors" not in body:
                    data: dict[str, Any] = body["data"]
                    return data
            await asyncio.sleep(0.05)
