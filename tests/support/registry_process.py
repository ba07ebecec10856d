"""A registry in a process of its own that can be killed and restarted on the same port."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.live_server import NO_TLS

SECONDS = 60


@dataclass
class Server:
    """A registry in a process of its own, always on the same port; `log` gets its output."""

    port: int
    environment: Mapping[str, str]
    log: Path = Path(os.devnull)
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "graph", "serve"),
                env={**os.environ, **self.environment, "NODE_REGISTRY_HTTP_PORT": str(self.port)},
                stdout=log,
                stderr=log,
            )

    async def wait_until_ready(self) -> None:
        """Wait until the registry answers; restart it if it exited because it found no database."""
        async with httpx.AsyncClient(verify=NO_TLS) as http, asyncio.timeout(SECONDS):
            while True:
                with suppress(httpx.TransportError):
                    await http.get(f"{self.url}/health/live")
                    return
                if self.process is None or self.process.returncode is not None:
                    await self.start()
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def find_free_port() -> int:
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port: int = free_socket.getsockname()[1]
        return port
