"""A TCP proxy between a client and its server that can cut or stall its connections."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Proxy:
    """`upstream` is a base URL or a Unix socket; `connection_count` counts accepted connections."""

    upstream: str
    port: int = 0
    connection_count: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    stalled_writers: set[asyncio.StreamWriter] = field(default_factory=set)
    serving: set[asyncio.Task[Any] | None] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    def cut(self) -> int:
        """Cut all connections; return how many."""
        for writer in self.writers:
            writer.transport.abort()
        return len(self.writers) // 2

    def stall(self) -> None:
        self.stalled_writers |= self.writers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        self.connection_count += 1
        try:
            upstream_reader, upstream_writer = await self.dial()
        except OSError:
            writer.transport.abort()
            return
        self.writers |= {writer, upstream_writer}
        await asyncio.gather(
            self.forward(reader, upstream_writer), self.forward(upstream_reader, writer)
        )
        self.writers -= {writer, upstream_writer}

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("/"):
            return await asyncio.open_unix_connection(self.upstream)
        host, _, port = self.upstream.removeprefix("http://").partition(":")
        return await asyncio.open_connection(host, int(port))

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if writer not in self.stalled_writers:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def run_proxy(upstream: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(upstream)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1")
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        proxy.cut()
        await asyncio.gather(*filter(None, proxy.serving))
