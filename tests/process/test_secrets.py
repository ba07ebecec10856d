"""A registry and an agent that log all they can, and use every secret: none is written down."""

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
from tests.support.keyring import create_token
from tests.support.registry_process import Server, find_free_port
from tests.support.trace_receiver import Receiver
from tests.support.transport_ws import open_websocket
from tests.support.waiting import wait_until

TOKENS = """
mutation Create($input: CreateTokenInput!) { createToken(input: $input) { key } }
mutation Enrol($input: CreateEnrolmentTokenInput!) { createEnrolmentToken(input: $input) { key } }
mutation Rotate($input: RotateTokenInput!) { rotateToken(input: $input) { key } }
mutation Revoke($input: RevokeTokenInput!) { revokeToken(input: $input) { tokens { id } } }
"""
REVISION = "{ registry { revision } }"
SECONDS = 60


@dataclass
class Told:
    """What is secret, and all that was answered besides the keys that were asked for."""

    http: httpx.AsyncClient
    secrets: set[str] = field(default_factory=set)
    answers: list[str] = field(default_factory=list)

    def keep(self, secret: str) -> str:
        """As whole, and the part that nobody may guess: of a token of the issuer its signature."""
        self.secrets |= {secret, secret[14:46] if secret.startswith("nrk_") else secret[-40:]}
        return secret

    async def ask(self, shown: str | None, query: str = REVISION, **asked: Any) -> httpx.Response:
        """`shown` is what stands in the Authorization header."""
        return await self.http.post(
            "/graphql",
            json={"query": query, **asked},
            headers={} if shown is None else {"authorization": shown},
        )

    def note(self, response: httpx.Response) -> None:
        self.answers.append(f"{response.headers} {response.text}")

    async def made(self, shown: str, operation: str, **given: Any) -> str:
        """The key that is shown this once."""
        response = await self.ask(
            shown, TOKENS, operationName=operation, variables={"input": given}
        )
        [payload] = response.json()["data"].values()
        return self.keep(payload["key"])


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
    """It logs and traces all it can, and so does its database."""
    async with database.write() as session:
        await session.execute(
            text(f"ALTER DATABASE \"{database_url.database}\" SET log_statement = 'all'")
        )
    (tmp_path / "jwks.json").write_bytes(to_jwks(to_jwk(RSA)))
    said = {
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
    environment = {f"NODE_REGISTRY_{name}": value for name, value in said.items()}
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "50"  # milliseconds
    server = Server(find_free_port(), environment, tmp_path / "registry.log")
    await server.start()
    try:
        await server.answers()
        yield Registry(server, database, tmp_path, receiver)
    finally:
        await server.kill()


@asynccontextmanager
async def agent(registry: Registry, enrolment_key: str) -> AsyncIterator[Path]:
    """Enrols, and keeps its own key in the file."""
    state = registry.folder / "agent"
    with (registry.folder / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "--verbose", "run"),
            *("--registry-url", registry.server.url, "--state-dir", str(state)),
            env={**os.environ, "NODE_AGENT_TOKEN": enrolment_key},
            stdout=log,
            stderr=log,
        )
    try:
        yield state / CREDENTIAL_FILE
    finally:
        process.terminate()
        await process.wait()


def key_in(path: Path) -> str:
    return str(json.loads(path.read_text())["key"]) if path.exists() else ""


async def kept(path: Path, *, other_than: str = "") -> str:
    await wait_until(lambda: key_in(path) != other_than, seconds=SECONDS, interval=0.05)
    return key_in(path)


async def by_websocket(
    told: Told, url: str, shown: str, headers: Mapping[str, str] | None = None
) -> None:
    async with open_websocket(f"{url.replace('http', 'ws', 1)}/graphql", headers=headers) as client:
        payload = {} if headers else {"payload": {"Authorization": shown}}
        await client.send({"type": "connection_init", **payload})
        await client.subscribe("1", REVISION)
        await client.send({"type": "subscribe", "id": shown, "payload": {"query": "{ nothing }"}})
        await client.send({"type": shown})
        told.answers.append(f"{await client.closed()}")


async def by_event_stream(told: Told, key: str, revoke: Any) -> None:
    headers = {"authorization": f"Bearer {key}", "accept": "text/event-stream"}
    async with told.http.stream(
        "POST", "/graphql", json={"query": CHANGES}, headers=headers
    ) as stream:
        await revoke
        told.answers.append("".join([part async for part in stream.aiter_text()]))


async def misplace(told: Told, admin: str, key: str) -> None:
    """A key everywhere but in the header."""
    variables = {"input": {"nodeId": key}}
    for request in (
        {"query": DEREGISTER, "variables": variables},
        {"query": REGISTER, "variables": variables},
        {"query": MAINTENANCE, "variables": {"input": {"nodeId": key, "enabled": key}}},
        {"query": TOKENS, "operationName": "Revoke", "variables": {"input": {"id": key}}},
        {"query": f"{{ {key} }}"},
        {"query": f'{{ node(nodeId: "{key}") {{ id {key} }} }}'},
        {"query": f"query {key} {{ registry {{ revision }} }}", "operationName": f"{key}x"},
        {"documentId": key},
        {"query": REVISION, "variables": key},
    ):
        for shown in (admin, None):
            headers = {"x-request-id": key} | ({"authorization": shown} if shown else {})
            told.note(await told.http.post("/graphql", json=request, headers=headers))
    for path, parameters in (
        ("/graphql", {"query": REVISION, "access_token": key}),
        ("/graphql", {"query": key}),
        (f"/{key}", {}),
        ("/metrics", {"token": key}),
    ):
        headers = {"accept": "application/json"}
        told.note(await told.http.get(path, params=parameters, headers=headers))


def test_what_a_request_says_is_kept_nowhere_behind_it() -> None:
    body = f'{{"key": "{generate_token().text}"}}'
    assert parse_json(body)["key"] is not parse_json(body)["key"]


async def test_no_secret_is_told_in_logs_errors_metrics_traces_the_trail_or_the_database(
    registry: Registry,
) -> None:
    admin_key = await create_token(registry.database, Role.ADMIN)
    async with httpx.AsyncClient(base_url=registry.server.url, timeout=SECONDS) as http:
        told = Told(http)
        admin = f"Bearer {told.keep(admin_key.text)}"
        enrolment = await told.made(
            admin, "Enrol", uses=1, expiresInSeconds=600, keyExpiresInSeconds=10
        )
        async with agent(registry, enrolment) as node_key:
            first = told.keep(await kept(node_key))
            viewer = await told.made(admin, "Create", role="VIEWER", name="v")
            public_id = viewer[4:14]
            listed = await told.ask(admin, "{ tokens { nodes { id name } } }")
            ids = {token["name"]: token["id"] for token in listed.json()["data"]["tokens"]["nodes"]}
            successor = await told.made(admin, "Rotate", id=ids["v"])
            revoking = told.ask(
                admin, TOKENS, operationName="Revoke", variables={"input": {"id": "v"}}
            )
            unknown, jwt = generate_token().text, sign()
            wrong = [
                *(unknown, f"{viewer[:-1]}_", jwt, jwt[:-4], sign(exp=1)),
                *(sign(ED, "EdDSA"), sign(roles=["nobody"])),
            ]
            for shown in wrong:
                told.keep(shown)
                told.note(await told.ask(f"Bearer {shown}"))
                told.note(await told.ask(f"Basic {shown}"))
                await by_websocket(told, registry.server.url, f"Bearer {shown}")
            for shown in (viewer, successor, first, jwt):
                told.note(await told.ask(f"Bearer {shown}", DEREGISTER))
                await by_websocket(told, registry.server.url, f"Bearer {shown}")
                header = {"authorization": f"Bearer {shown}"}
                await by_websocket(told, registry.server.url, shown, header)
            await by_event_stream(told, successor, revoking)
            told.keep(await kept(node_key, other_than=first))
            metrics = await http.get("/metrics", headers={"authorization": admin})
            trail = await told.ask(
                admin, "{ auditLog(first: 1000) { nodes { subject actor before after } } }"
            )
        assert public_id in trail.text
        everywhere = {
            "registry": registry.server.log.read_text(),
            "agent": (registry.folder / "agent.log").read_text(),
            "metrics": metrics.text,
            "traces": b"".join(registry.receiver.bodies).decode(errors="replace"),
            "answers": "\n".join(told.answers),
            "trail": trail.text,
            "tables": await tables(registry.database),
            "statements": await statements(registry.database),
        }
        for place, said in everywhere.items():
            assert len(said) > 100, place
            assert not [secret for secret in told.secrets if secret in said], place
        misplaced = told.keep(generate_token().text)
        await misplace(told, admin, misplaced)
        for said in (*told.answers, registry.server.log.read_text()):
            assert misplaced[14:46] not in said


async def tables(database: Database) -> str:
    """All that the database holds, as text."""
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


async def statements(database: Database) -> str:
    """PostgreSQL's log: each statement with its parameters."""
    async with database.read() as session:
        folder = await session.scalar(text("SHOW data_directory"))
    return (Path(str(folder)).parent / "postgres.log").read_text(errors="replace")
