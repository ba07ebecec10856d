"""Stands between a client and its server; it may cut what it carries, or let it starve."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Proxy:
    """`upstream` is a base URL or a Unix socket; `taken` counts the connections that came."""

    upstream: str
    port: int = 0
    taken: int = 0
    carried: set[asyncio.StreamWriter] = field(default_factory=set)
    starved: set[asyncio.StreamWriter] = field(default_factory=set)
    serving: set[asyncio.Task[Any] | None] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    def cut(self) -> int:
        """Cut all connections; return how many."""
        for writer in self.carried:
            writer.transport.abort()
        return len(self.carried) // 2

    def starve(self) -> None:
        self.starved |= self.carried

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        self.taken += 1
        try:
            there, back = await self.dial()
        except OSError:
            writer.transport.abort()
            return
        self.carried |= {writer, back}
        await asyncio.gather(self.carry(reader, back), self.carry(there, writer))
        self.carried -= {writer, back}

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.upstream.startswith("/"):
            return await asyncio.open_unix_connection(self.upstream)
        host, _, port = self.upstream.removeprefix("http://").partition(":")
        return await asyncio.open_connection(host, int(port))

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if writer not in self.starved:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@asynccontextmanager
async def run_proxy(upstream: str) -> AsyncIterator[Proxy]:
    between = Proxy(upstream)
    listening = await asyncio.start_server(between.serve, "127.0.0.1")
    between.port = listening.sockets[0].getsockname()[1]
    try:
        yield between
    finally:
        listening.close()
        between.cut()
        await asyncio.gather(*filter(None, between.serving))
