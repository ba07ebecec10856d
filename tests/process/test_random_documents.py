"""Random documents and variables over HTTP and websockets each get a typed answer in time.

--thorough runs for minutes, each time with other documents.
"""

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import URL
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from db.core.database import Database
from db.core.enums import Role
from tests.support.random_documents import KNOWN, MUTATIONS, QUERIES, SUBSCRIPTIONS
from tests.support.registry_process import Server, find_free_port
from tests.support.tokens import create_token
from tests.support.transport_ws import PROTOCOL

FEW = settings(
    max_examples=30,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MANY = settings(FEW, max_examples=300, derandomize=False)
MINUTES = 5
MAX_GROWTH_BYTES = 60_000_000
SECONDS = 10

FAULTS = {"INTERNAL", "UNAVAILABLE"}
REGISTER = {
    "query": "mutation ($input: RegisterNodeInput!) { registerNode(input: $input) { created } }",
    "variables": {
        "input": {"nodeId": KNOWN, "role": "DEVELOPMENT", "type": "ROUTER", "bootId": "b"}
    },
}
BARRIER = {"query": "{ __typename }"}


@dataclass
class Caller:
    """Sends a request over HTTP or over a websocket, and checks the errors of the answer."""

    http: httpx.Client
    websocket: ClientConnection
    ids: Iterator[int] = field(default_factory=count)

    def send_over_http(self, request: Mapping[str, Any]) -> None:
        response = self.http.post("/graphql", content=json.dumps(request))
        assert response.status_code in {200, 400, 403}, response.text
        self._check_errors(response.json().get("errors", []))

    def send_over_websocket(self, request: Mapping[str, Any]) -> None:
        """Send a request, and complete it once a barrier request sent after it is answered."""
        operation_id, barrier = str(next(self.ids)), str(next(self.ids))
        self._send(operation_id, request)
        self._send(barrier, BARRIER)
        messages = self._receive_until(barrier)
        self.websocket.send(json.dumps({"type": "complete", "id": operation_id}))
        for message in messages:
            payload = message.get("payload", {})
            self._check_errors(payload if message["type"] == "error" else payload.get("errors", []))

    def _send(self, operation_id: str, request: Mapping[str, Any]) -> None:
        message = {"id": operation_id, "type": "subscribe", "payload": request}
        self.websocket.send(json.dumps(message))

    def _receive_until(self, barrier: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1] != {"type": "complete", "id": barrier}:
            messages.append(json.loads(self.websocket.recv(SECONDS)))
        return messages

    def _check_errors(self, errors: list[dict[str, Any]]) -> None:
        for error in errors:
            assert error["extensions"]["code"] not in FAULTS, error


@contextmanager
def open_caller(url: str, token: str) -> Iterator[Caller]:
    headers = {"authorization": f"Bearer {token}"}
    with (
        httpx.Client(
            base_url=url,
            headers={**headers, "content-type": "application/json"},
            timeout=SECONDS,
        ) as http,
        connect(
            f"{url.replace('http', 'ws', 1)}/graphql",
            subprotocols=[Subprotocol(PROTOCOL)],
            additional_headers=headers,
            max_size=None,
            ping_interval=None,  # a ping draws from the random generator that Hypothesis controls
        ) as websocket,
    ):
        websocket.send('{"type": "connection_init"}')
        websocket.recv(SECONDS)
        yield Caller(http, websocket)


@dataclass(frozen=True)
class Registry:
    url: str
    log: Path
    process: psutil.Process
    tokens: list[str]


@pytest.fixture
async def registry(
    database_url: URL, database: Database, tmp_path: Path
) -> AsyncIterator[Registry]:
    admin = await create_token(database, Role.ADMIN)
    agent = await create_token(database, Role.AGENT, nodes=[KNOWN])
    environment = {
        "NODE_REGISTRY_DATABASE_URL": database_url.render_as_string(hide_password=False),
        "NODE_REGISTRY_AUTH": "required",
        "NODE_REGISTRY_LOG_LEVEL": "error",
        "NODE_REGISTRY_DATA_DIR": str(tmp_path),
    }
    server = Server(find_free_port(), environment, tmp_path / "log")
    await server.start()
    await server.wait_until_ready()
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    try:
        yield Registry(server.url, server.log, process, [admin.text, agent.text])
    finally:
        await server.kill()


def test_random_requests_are_answered_without_internal_errors(
    registry: Registry, *, thorough: bool
) -> None:
    log_before = registry.log.read_text()
    with ExitStack() as stack:
        callers = [
            stack.enter_context(open_caller(registry.url, token)) for token in registry.tokens
        ]
        callers[0].send_over_http(REGISTER)
        request_count = count()

        def ask(request: Mapping[str, Any], caller_number: int, *, websocket: bool) -> None:
            next(request_count)
            (
                callers[caller_number].send_over_websocket
                if websocket
                else callers[caller_number].send_over_http
            )(request)

        caller_numbers, either_transport = st.integers(0, len(callers) - 1), st.booleans()
        strategies = [
            (QUERIES, either_transport),
            (MUTATIONS, either_transport),
            (SUBSCRIPTIONS, st.just(value=True)),
        ]
        deadline = time.monotonic() + (60 * MINUTES if thorough else 0)
        rounds, resident = 0, 0
        while rounds == 0 or time.monotonic() < deadline:
            for requests, transports in strategies:
                run_examples = given(
                    request=requests, caller_number=caller_numbers, websocket=transports
                )(ask)
                seed(rounds)(MANY if thorough else FEW)(run_examples)()
            rounds += 1
            if rounds == 1:
                resident = registry.process.memory_info().rss
        growth = registry.process.memory_info().rss - resident
        assert growth < MAX_GROWTH_BYTES
        print(f"{next(request_count)} requests, {growth / 1e6:.1f} MB more")  # noqa: T201  # shown by -rP
    assert registry.log.read_text() == log_before
