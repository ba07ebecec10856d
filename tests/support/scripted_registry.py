"""A registry that gives scripted answers over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agent import identity
from agent.credentials import Credentials
from agent.http_transport import HttpTransport
from agent.machine import observe_machine
from agent.pace import Schedule
from agent.runner import Runner
from agent.settings import load_settings
from tests.support.fake_time import Time

HANG, DRIP = object(), object()
NODE: dict[str, object] = {
    "nodeId": "node-1",
    "name": "node-1",
    "role": "DEVELOPMENT",
    "type": "WORKER",
    "labels": [],
    "hostname": None,
    "ipAddress": None,
    "localIp": None,
    "status": "ONLINE",
    "lastHeartbeat": None,
}


def make_reply(body: object, status: str = "200 OK", headers: str = "") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n{headers}\r\n"
    return head.encode() + text


def make_rejection(code: str, **facts: object) -> bytes:
    extensions = {"code": code, **facts}
    return make_reply({"data": None, "errors": [{"message": "no", "extensions": extensions}]})


def make_registration_reply(interval: float = 10.0) -> bytes:
    payload = {"node": NODE, "created": True, "nextHeartbeatInSeconds": interval}
    return make_reply({"data": {"registerNode": payload}})


def make_heartbeat_reply(interval: float = 10.0) -> bytes:
    payload = {
        "nodeId": "node-1",
        "status": "ONLINE",
        "receivedAt": "2026-11-23T16:00:00+00:00",
        "nextHeartbeatInSeconds": interval,
    }
    return make_reply({"data": {"recordHeartbeat": payload}})


@dataclass
class ScriptedRegistry:
    """A registry that gives its answers in order: bytes, HANG, DRIP, or None to close."""

    answers: list[object]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    serving: list[asyncio.Task[object] | None] = field(default_factory=list)

    @property
    def connections(self) -> int:
        return len(self.serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().split("content-length:")[1].split()[0])
                self.headers.append(head)
                self.requests.append(json.loads(await reader.readexactly(length)))
                answer = self.answers.pop(0)
                if answer is HANG:
                    await reader.read()
                if answer is DRIP:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while answer is DRIP:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.02)
                if not isinstance(answer, bytes):
                    return
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def inputs(self, operation: str) -> list[dict[str, Any]]:
        return [
            request["variables"]["input"]
            for request in self.requests
            if operation in request["query"]
        ]


@asynccontextmanager
async def run_scripted_registry(*answers: object) -> AsyncIterator[ScriptedRegistry]:
    registry = ScriptedRegistry(list(answers))
    server = await asyncio.start_server(registry.serve, "127.0.0.1")
    registry.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/graphql"
    try:
        yield registry
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*filter(None, registry.serving))


def make_runner(
    registry: ScriptedRegistry, directory: Path, time: Time, patience: float | None = None
) -> Runner:
    machine = observe_machine()
    return Runner(
        HttpTransport(registry.url, "the-token", timeout_seconds=0.5),
        Credentials(directory, SecretStr("the-token"), time.clock.uniform),
        Schedule(time.clock),
        directory,
        load_settings({"registry_url": registry.url}),
        identity.prepare_boot_id(directory, machine.hostname, machine.local_ip),
        max_retry_seconds=patience,
        clock=time.clock,
    )
