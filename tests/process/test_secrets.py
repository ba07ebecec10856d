"""A registry and an agent with the most verbose logs write down none of the secrets they use."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL, text

from agent.credentials import CREDENTIAL_FILE
from db.core.database import Database
from db.core.enums import Role
from db.core.token_format import generate_token
from graph.execution.request import parse_json
from tests.support.api import CHANGES, DEREGISTER, MAINTENANCE, REGISTER
from tests.support.issuer import AUDIENCE, ED, ISSUER, ROLES, RSA, sign, to_jwk, to_jwks
from tests.support.registry_process import Server, find_free_port
from tests.support.tokens import create_token
from tests.support.trace_receiver import Receiver
from tests.support.transport_ws import open_websocket
from tests.support.waiting import wait_until

TOKEN_MUTATIONS = """
mutation Create($input: CreateTokenInput!) { createToken(input: $input) { key } }
mutation Enrol($input: CreateEnrolmentTokenInput!) { createEnrolmentToken(input: $input) { key } }
mutation Rotate($input: RotateTokenInput!) { rotateToken(input: $input) { key } }
mutation Revoke($input: RevokeTokenInput!) { revokeToken(input: $input) { tokens { id } } }
"""
REVISION = "{ registry { revision } }"
SECONDS = 60


@dataclass
class SecretRecorder:
    """The secrets of a test, and the answers in which none of them may appear."""

    http: httpx.AsyncClient
    secrets: set[str] = field(default_factory=set)
    answers: list[str] = field(default_factory=list)

    def add_secret(self, secret: str) -> str:
        """Add a secret, whole and its random part, which is the signature of a JWT; return it."""
        self.secrets |= {secret, secret[14:46] if secret.startswith("nrk_") else secret[-40:]}
        return secret

    async def send(
        self, authorization: str | None, query: str = REVISION, **body: Any
    ) -> httpx.Response:
        """Send a request; `authorization` is the content of the Authorization header."""
        return await self.http.post(
            "/graphql",
            json={"query": query, **body},
            headers={} if authorization is None else {"authorization": authorization},
        )

    def record_answer(self, response: httpx.Response) -> None:
        self.answers.append(f"{response.headers} {response.text}")

    async def create(self, authorization: str, operation: str, **fields: Any) -> str:
        """Create a token by a mutation, and return its text, which is shown only once."""
        response = await self.send(
            authorization, TOKEN_MUTATIONS, operationName=operation, variables={"input": fields}
        )
        [payload] = response.json()["data"].values()
        return self.add_secret(payload["key"])


@dataclass(frozen=True)
class Registry:
    server: Server
    database: Database
    folder: Path
    receiver: Receiver


@pytest.fixture
async def registry(
    database_url: URL,
    database: Database,
    tmp_path: Path,
    receiver: Receiver,
) -> AsyncIterator[Registry]:
    """A registry that logs at debug level and traces, on a database that logs statements."""
    async with database.write() as session:
        await session.execute(
            text(f"ALTER DATABASE \"{database_url.database}\" SET log_statement = 'all'")
        )
    (tmp_path / "jwks.json").write_bytes(to_jwks(to_jwk(RSA)))
    settings = {
        "DATABASE_URL": database_url.render_as_string(hide_password=False),
        "DATA_DIR": str(tmp_path),
        "AUTH": "required",
        "LOG_LEVEL": "debug",
        "HEARTBEAT_MIN_INTERVAL_SECONDS": "0.2",
        "KEY_CHECK_SECONDS": "0.1",
        "OTLP_ENDPOINT": receiver.url,
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": AUDIENCE,
        "JWT_JWKS": str(tmp_path / "jwks.json"),
        "JWT_ROLES": json.dumps(ROLES),
    }
    environment = {f"NODE_REGISTRY_{name}": value for name, value in settings.items()}
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "50"  # milliseconds
    server = Server(find_free_port(), environment, tmp_path / "registry.log")
    await server.start()
    try:
        await server.wait_until_ready()
        yield Registry(server, database, tmp_path, receiver)
    finally:
        await server.kill()


@asynccontextmanager
async def run_agent(registry: Registry, enrolment_token: str) -> AsyncIterator[Path]:
    """Run an agent that enrols, and yield the file in which it keeps its own token."""
    state = registry.folder / "agent"
    with (registry.folder / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "--verbose", "run"),
            *("--registry-url", registry.server.url, "--state-dir", str(state)),
            env={**os.environ, "NODE_AGENT_TOKEN": enrolment_token},
            stdout=log,
            stderr=log,
        )
    try:
        yield state / CREDENTIAL_FILE
    finally:
        process.terminate()
        await process.wait()


def read_token(path: Path) -> str:
    return str(json.loads(path.read_text())["key"]) if path.exists() else ""


async def wait_for_token(path: Path, *, other_than: str = "") -> str:
    await wait_until(lambda: read_token(path) != other_than, seconds=SECONDS, interval=0.05)
    return read_token(path)


async def send_by_websocket(
    recorder: SecretRecorder, url: str, authorization: str, headers: Mapping[str, str] | None = None
) -> None:
    async with open_websocket(f"{url.replace('http', 'ws', 1)}/graphql", headers=headers) as client:
        payload = {} if headers else {"payload": {"Authorization": authorization}}
        await client.send({"type": "connection_init", **payload})
        await client.subscribe("1", REVISION)
        await client.send(
            {"type": "subscribe", "id": authorization, "payload": {"query": "{ nothing }"}}
        )
        await client.send({"type": authorization})
        recorder.answers.append(f"{await client.wait_for_close()}")


async def read_event_stream(recorder: SecretRecorder, token: str, revocation: Any) -> None:
    headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}
    async with recorder.http.stream(
        "POST", "/graphql", json={"query": CHANGES}, headers=headers
    ) as stream:
        await revocation
        recorder.answers.append("".join([part async for part in stream.aiter_text()]))


async def send_misplaced(recorder: SecretRecorder, admin: str, token: str) -> None:
    """Send a token everywhere but in the Authorization header."""
    variables = {"input": {"nodeId": token}}
    for request in (
        {"query": DEREGISTER, "variables": variables},
        {"query": REGISTER, "variables": variables},
        {"query": MAINTENANCE, "variables": {"input": {"nodeId": token, "enabled": token}}},
        {
            "query": TOKEN_MUTATIONS,
            "operationName": "Revoke",
            "variables": {"input": {"id": token}},
        },
        {"query": f"{{ {token} }}"},
        {"query": f'{{ node(nodeId: "{token}") {{ id {token} }} }}'},
        {"query": f"query {token} {{ registry {{ revision }} }}", "operationName": f"{token}x"},
        {"documentId": token},
        {"query": REVISION, "variables": token},
    ):
        for authorization in (admin, None):
            headers = {"x-request-id": token} | (
                {"authorization": authorization} if authorization else {}
            )
            recorder.record_answer(
                await recorder.http.post("/graphql", json=request, headers=headers)
            )
    for path, parameters in (
        ("/graphql", {"query": REVISION, "access_token": token}),
        ("/graphql", {"query": token}),
        (f"/{token}", {}),
        ("/metrics", {"token": token}),
    ):
        headers = {"accept": "application/json"}
        recorder.record_answer(await recorder.http.get(path, params=parameters, headers=headers))


def test_parse_json_does_not_cache_the_strings_of_a_request() -> None:
    body = f'{{"key": "{generate_token().text}"}}'
    assert parse_json(body)["key"] is not parse_json(body)["key"]


async def test_no_secret_appears_in_logs_errors_metrics_traces_the_audit_log_or_the_database(
    registry: Registry,
) -> None:
    admin_token = await create_token(registry.database, Role.ADMIN)
    async with httpx.AsyncClient(base_url=registry.server.url, timeout=SECONDS) as http:
        recorder = SecretRecorder(http)
        admin = f"Bearer {recorder.add_secret(admin_token.text)}"
        enrolment = await recorder.create(
            admin, "Enrol", uses=1, expiresInSeconds=600, keyExpiresInSeconds=10
        )
        async with run_agent(registry, enrolment) as token_file:
            node_token = recorder.add_secret(await wait_for_token(token_file))
            viewer = await recorder.create(admin, "Create", role="VIEWER", name="v")
            public_id = viewer[4:14]
            token_list = await recorder.send(admin, "{ tokens { nodes { id name } } }")
            ids = {
                token["name"]: token["id"] for token in token_list.json()["data"]["tokens"]["nodes"]
            }
            successor = await recorder.create(admin, "Rotate", id=ids["v"])
            revocation = recorder.send(
                admin, TOKEN_MUTATIONS, operationName="Revoke", variables={"input": {"id": "v"}}
            )
            unknown, jwt = generate_token().text, sign()
            invalid_tokens = [
                *(unknown, f"{viewer[:-1]}_", jwt, jwt[:-4], sign(exp=1)),
                *(sign(ED, "EdDSA"), sign(roles=["nobody"])),
            ]
            for token in invalid_tokens:
                recorder.add_secret(token)
                recorder.record_answer(await recorder.send(f"Bearer {token}"))
                recorder.record_answer(await recorder.send(f"Basic {token}"))
                await send_by_websocket(recorder, registry.server.url, f"Bearer {token}")
            for token in (viewer, successor, node_token, jwt):
                recorder.record_answer(await recorder.send(f"Bearer {token}", DEREGISTER))
                await send_by_websocket(recorder, registry.server.url, f"Bearer {token}")
                header = {"authorization": f"Bearer {token}"}
                await send_by_websocket(recorder, registry.server.url, token, header)
            await read_event_stream(recorder, successor, revocation)
            recorder.add_secret(await wait_for_token(token_file, other_than=node_token))
            metrics = await http.get("/metrics", headers={"authorization": admin})
            audit_log = await recorder.send(
                admin, "{ auditLog(first: 1000) { nodes { subject actor before after } } }"
            )
        assert public_id in audit_log.text
        outputs = {
            "registry": registry.server.log.read_text(),
            "agent": (registry.folder / "agent.log").read_text(),
            "metrics": metrics.text,
            "traces": b"".join(registry.receiver.bodies).decode(errors="replace"),
            "answers": "\n".join(recorder.answers),
            "audit log": audit_log.text,
            "tables": await dump_tables(registry.database),
            "statements": await read_statements(registry.database),
        }
        for source, output in outputs.items():
            assert len(output) > 100, source
            assert not [secret for secret in recorder.secrets if secret in output], source
        misplaced = recorder.add_secret(generate_token().text)
        await send_misplaced(recorder, admin, misplaced)
        for output in (*recorder.answers, registry.server.log.read_text()):
            assert misplaced[14:46] not in output


async def dump_tables(database: Database) -> str:
    """Return all rows of all tables as text."""
    async with database.read() as session:
        names = await session.scalars(
            text(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
                " AND relnamespace = 'public'::regnamespace"
            )
        )
        rows = [
            row
            for name in names
            for row in await session.scalars(text(f"SELECT t::text FROM {name} t"))  # noqa: S608
        ]
    return "\n".join(rows)


async def read_statements(database: Database) -> str:
    """Return PostgreSQL's log, which has each statement with its parameters."""
    async with database.read() as session:
        folder = await session.scalar(text("SHOW data_directory"))
    return (Path(str(folder)).parent / "postgres.log").read_text(errors="replace")
