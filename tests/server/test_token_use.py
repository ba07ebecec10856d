"""The first use of a token counts before it is answered, in every process of the registry."""

import asyncio
from typing import Any

import pytest

from db.access import token_changes
from db.core.database import Database
from db.core.enums import Role
from db.core.errors import Forbidden, Unauthenticated
from db.core.tables import TOKEN
from graph.auth.credential_verifier import CredentialVerifier
from tests.support.fleet import fetch_rows, wait_for_lock
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import (
    create_enrolment,
    create_token,
    list_valid_tokens,
    rotate_token,
)
from tests.support.transport_ws import open_websocket

ROTATE = "mutation { rotateNodeKey { key } }"
REVISION = "{ registry { revision } }"


def make_verifier(database: Database) -> CredentialVerifier:
    return CredentialVerifier(database, None, check_seconds=3600)


async def post(server: LiveServer, token: str, query: str) -> dict[str, Any]:
    response = await server.http.post(
        "/graphql", json={"query": query}, headers={"authorization": f"Bearer {token}"}
    )
    body: dict[str, Any] = response.json()
    return body


async def rotate_own(server: LiveServer, token: str) -> str:
    return str((await post(server, token, ROTATE))["data"]["rotateNodeKey"]["key"])


async def test_a_successor_that_one_process_has_verified_is_in_use_for_another(
    start_server: StartServer,
) -> None:
    options: dict[str, Any] = {"auth": "required", "sweep_interval_seconds": 3600}
    async with start_server(**options) as first, start_server(**options) as second:
        old = await create_token(first.services.database, Role.AGENT, nodes=["gpu-1"])
        lost = await rotate_own(first, old.text)
        new = await rotate_own(second, old.text)
        assert "errors" in await post(first, lost, REVISION)
        assert "errors" not in await post(first, new, REVISION)
        [error] = (await post(second, old.text, ROTATE))["errors"]
        assert error["extensions"]["code"] == "FORBIDDEN"
        assert error["extensions"]["token"] == new[4:14]
        assert "errors" not in await post(second, new, REVISION)


async def test_a_websocket_uses_its_token_when_it_opens(start_server: StartServer) -> None:
    async with start_server(auth="required", sweep_interval_seconds=3600) as server:
        old = await create_token(server.services.database, Role.AGENT, nodes=["gpu-1"])
        new = await rotate_own(server, old.text)
        headers = {"authorization": f"Bearer {new}"}
        async with open_websocket(server.websocket_url, headers=headers) as client:
            await client.send({"type": "connection_init"})
            assert await client.receive() == {"type": "connection_ack"}
            [error] = (await post(server, old.text, ROTATE))["errors"]
            assert error["extensions"]["code"] == "FORBIDDEN"


@pytest.mark.parametrize("role", [Role.AGENT, Role.VIEWER, Role.ADMIN, Role.ENROLMENT])
async def test_the_first_use_is_recorded_at_once_and_later_ones_are_not(
    database: Database, role: Role
) -> None:
    token = await (
        create_enrolment(database)
        if role is Role.ENROLMENT
        else create_token(database, role, nodes=["gpu-1"] if role is Role.AGENT else [])
    )
    used = "SELECT last_used_at FROM tokens"
    await make_verifier(database).verify(token.text)
    [(first,)] = await fetch_rows(database, used)
    assert first is not None
    await make_verifier(database).verify(token.text)
    assert await fetch_rows(database, used) == [(first,)]


async def test_a_token_is_used_or_replaced_but_never_both(database: Database) -> None:
    for _ in range(5):
        old = await create_token(database)
        new = await rotate_token(database, old.token)
        used, rotated = await asyncio.gather(
            make_verifier(database).verify(new.text),
            rotate_token(database, old.token),
            return_exceptions=True,
        )
        assert isinstance(used, Unauthenticated) != isinstance(rotated, Forbidden)
        valid = await list_valid_tokens(database, new)
        assert bool(valid) == isinstance(rotated, Forbidden)


async def test_a_token_that_is_revoked_between_its_look_up_and_its_use_is_rejected(
    database: Database,
) -> None:
    token = await create_token(database)
    async with database.write() as session:
        revoked = await token_changes.mark_revoked(session, TOKEN.id == token.token.id)
        assert len(revoked) == 1
        verification = asyncio.create_task(make_verifier(database).verify(token.text))
        await wait_for_lock(database)
    with pytest.raises(Unauthenticated):
        await verification
