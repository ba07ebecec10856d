"""Tokens over HTTP, event streams and websockets, and how soon a revocation takes effect."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest
from structlog.types import EventDict

from db.access.token_changes import IssuedToken
from db.core.database import Database
from db.core.enums import Role
from db.core.errors import Unavailable
from tests.support.api import CHANGES, MAINTENANCE, register, wait_for_revision
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import age_tokens, create_token, revoke_token, rotate_token
from tests.support.transport_ws import Client, open_websocket

REVISION = "{ registry { revision } }"
SOON = 0.05


@pytest.fixture
async def auth_server(start_server: StartServer) -> AsyncIterator[LiveServer]:
    async with start_server(auth="required", key_check_seconds=SOON) as live:
        yield live


def make_bearer_header(token: IssuedToken | str) -> dict[str, str]:
    return {"authorization": f"Bearer {token if isinstance(token, str) else token.text}"}


async def send_query(
    server: LiveServer, query: str = REVISION, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    return await server.http.post("/graphql", json={"query": query}, headers=headers)


def get_error_code(response: httpx.Response) -> str:
    [error] = response.json()["errors"]
    code: str = error["extensions"]["code"]
    return code


async def send_init(client: Client, token: IssuedToken | None = None) -> None:
    await client.send(
        {"type": "connection_init", "payload": make_bearer_header(token) if token else {}}
    )


async def test_request_without_a_token_is_unauthenticated(auth_server: LiveServer) -> None:
    for response in (
        await send_query(auth_server),
        await send_query(auth_server, "{ nonsense"),
        await auth_server.http.get("/graphql", params={"query": REVISION}),
        await auth_server.http.post(
            "/graphql", json={"query": CHANGES}, headers={"accept": "text/event-stream"}
        ),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert get_error_code(response) == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Basic bm9ib2R5Og==",
        "Bearer nonsense",
        "Bearer nrk_" + 48 * "0",
        "Bearer " + 9000 * "x",
        "Bearer \xe4\xf6\xfc",
        "Bearer ' OR 1=1 --",
    ],
)
async def test_invalid_credentials_are_rejected(auth_server: LiveServer, header: str) -> None:
    response = await send_query(auth_server, headers={"authorization": header.encode("latin-1")})  # type: ignore[dict-item]  # bytes, as they are sent
    assert response.status_code == 401
    assert get_error_code(response) == "UNAUTHENTICATED"


async def test_token_is_valid_until_it_is_revoked(
    auth_server: LiveServer, database: Database
) -> None:
    token = await create_token(database, Role.VIEWER)
    assert (await send_query(auth_server, headers=make_bearer_header(token))).status_code == 200
    await revoke_token(database, token.token.public_id)
    async with asyncio.timeout(10):
        while (await send_query(auth_server, headers=make_bearer_header(token))).status_code != 401:
            await asyncio.sleep(SOON)


async def test_token_is_valid_until_it_expires(auth_server: LiveServer, database: Database) -> None:
    token = await create_token(database, Role.VIEWER, lifetime=timedelta(hours=1))
    assert (await send_query(auth_server, headers=make_bearer_header(token))).status_code == 200
    await age_tokens(database, timedelta(hours=2))
    async with asyncio.timeout(10):
        while (await send_query(auth_server, headers=make_bearer_header(token))).status_code != 401:
            await asyncio.sleep(SOON)


async def test_rotation_leaves_both_tokens_valid_during_the_overlap(
    auth_server: LiveServer, database: Database
) -> None:
    old = await create_token(database, Role.VIEWER)
    new = await rotate_token(database, old.token)
    for token in (old, new):
        assert (await send_query(auth_server, headers=make_bearer_header(token))).status_code == 200
    await age_tokens(database, timedelta(hours=2))
    async with asyncio.timeout(10):
        while (await send_query(auth_server, headers=make_bearer_header(old))).status_code != 401:
            await asyncio.sleep(SOON)
    assert (await send_query(auth_server, headers=make_bearer_header(new))).status_code == 200


async def test_verified_token_is_cached(start_server: StartServer, database: Database) -> None:
    token = await create_token(database, Role.VIEWER)
    async with start_server(auth="required", key_check_seconds=300) as server:
        await asyncio.gather(
            *(send_query(server, headers=make_bearer_header(token)) for _ in range(20))
        )
        await revoke_token(database, token.token.public_id)
        assert (await send_query(server, headers=make_bearer_header(token))).status_code == 200


async def test_last_use_of_a_token_is_recorded_in_the_background(
    start_server: StartServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.auth.credential_verifier.RECORD_USE_SECONDS", 0)
    token = await create_token(database, Role.VIEWER)
    async with (
        start_server(auth="required", key_check_seconds=SOON) as server,
        asyncio.timeout(10),
    ):
        await send_query(server, headers=make_bearer_header(token))
        while True:
            async with database.read() as session:
                found = await session.get(type(token.token), token.token.id)
                assert found is not None
                if found.last_used_at is not None:
                    break
            await asyncio.sleep(SOON)
    assert found.last_used_at >= token.token.created_at


async def test_change_log_names_the_caller_by_its_token_name(
    auth_server: LiveServer, database: Database
) -> None:
    admin = await create_token(database, Role.ADMIN)
    operator = await create_token(database, Role.OPERATOR, name="carla")
    auth_server.http.headers.update(make_bearer_header(admin))
    await register(auth_server, "a")
    auth_server.http.headers.update(make_bearer_header(operator))
    await auth_server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
    data = await auth_server.execute("{ statusChanges(first: 1) { nodes { actor } } }")
    assert data["statusChanges"]["nodes"] == [{"actor": "token/carla"}]


@pytest.mark.parametrize("place", ["header", "init", "init in capitals"])
async def test_websocket_authenticates_by_header_or_init_payload(
    auth_server: LiveServer, database: Database, place: str
) -> None:
    token = await create_token(database, Role.VIEWER)
    headers = make_bearer_header(token) if place == "header" else {}
    payload = (
        {"Authorization": f"Bearer {token.text}"}
        if "capitals" in place
        else make_bearer_header(token)
    )
    async with open_websocket(auth_server.websocket_url, headers=headers) as client:
        await client.send({"type": "connection_init"} | ({} if headers else {"payload": payload}))
        assert await client.receive() == {"type": "connection_ack"}
        await client.subscribe("1", REVISION)
        assert (await client.receive())["type"] == "next"


async def test_websocket_without_a_valid_token_is_closed(
    auth_server: LiveServer, database: Database
) -> None:
    revoked = await create_token(database, Role.VIEWER)
    await revoke_token(database, revoked.token.public_id)
    for token in (None, revoked):
        async with open_websocket(auth_server.websocket_url) as client:
            await send_init(client, token)
            assert (await client.wait_for_close())[0] == 4401
    async with open_websocket(
        auth_server.websocket_url, headers=make_bearer_header("nonsense")
    ) as client:
        assert (await client.wait_for_close())[0] == 4401
    async with open_websocket(auth_server.websocket_url) as client:
        await client.send({"type": "connection_init", "payload": {"authorization": ["Bearer"]}})
        assert (await client.wait_for_close())[0] == 4401
    async with open_websocket(auth_server.websocket_url) as client:
        await client.subscribe("1", REVISION)
        assert (await client.wait_for_close())[0] == 4401


async def test_websocket_ends_when_its_token_is_revoked(
    auth_server: LiveServer, database: Database
) -> None:
    token, other = (
        await create_token(database, Role.VIEWER),
        await create_token(database, Role.VIEWER),
    )
    async with (
        open_websocket(auth_server.websocket_url) as ending,
        open_websocket(auth_server.websocket_url) as staying,
    ):
        await send_init(ending, token)
        await send_init(staying, other)
        for client in (ending, staying):
            assert await client.receive() == {"type": "connection_ack"}
            await client.subscribe("1", CHANGES)
        await revoke_token(database, token.token.public_id)
        async with asyncio.timeout(10):
            code, reason = await ending.wait_for_close()
        assert (code, reason) == (4401, "the credentials were revoked or have expired")
        auth_server.http.headers.update(
            make_bearer_header(await create_token(database, Role.ADMIN))
        )
        await register(auth_server, "a")
        message = await staying.receive()
        assert message["payload"]["data"]["nodeStatusChanges"]["change"]["nodeId"] == "a"


async def test_event_stream_ends_when_its_token_is_revoked(
    auth_server: LiveServer, database: Database
) -> None:
    token = await create_token(database, Role.VIEWER)
    headers = {"accept": "text/event-stream"} | make_bearer_header(token)
    async with (
        asyncio.timeout(10),
        auth_server.http.stream(
            "POST", "/graphql", json={"query": CHANGES}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200
        await revoke_token(database, token.token.public_id)
        events = "".join([part async for part in response.aiter_text()])
    assert events.startswith("event: next\n")
    assert '"code":"UNAUTHENTICATED"' in events
    assert events.endswith("event: complete\ndata: \n\n")


async def test_repeated_failed_logins_are_rate_limited_and_do_not_affect_valid_tokens(
    start_server: StartServer, database: Database
) -> None:
    token = await create_token(database, Role.VIEWER)
    async with start_server(auth="required", failed_logins_per_minute=3) as server:
        assert (await send_query(server, headers=make_bearer_header(token))).status_code == 200
        for number in range(3):
            assert (
                await send_query(server, headers=make_bearer_header(f"wrong-{number}"))
            ).status_code == 401
        rejected = await send_query(server, headers=make_bearer_header("wrong"))
        assert rejected.status_code == 429
        assert get_error_code(rejected) == "RATE_LIMITED"
        assert 0 < int(rejected.headers["retry-after"]) <= 20
        assert (await send_query(server, headers=make_bearer_header(token))).status_code == 200


async def test_rate_limited_caller_gets_the_time_to_retry_after(
    start_server: StartServer, database: Database
) -> None:
    greedy, modest = (
        await create_token(database, Role.VIEWER),
        await create_token(database, Role.VIEWER),
    )
    async with start_server(auth="required", requests_per_second=1) as server:
        statuses = [
            (await send_query(server, headers=make_bearer_header(greedy))).status_code
            for _ in range(6)
        ]
        assert statuses[:2] == [200] * 2
        assert 429 in statuses[2:]
        rejected = await send_query(server, headers=make_bearer_header(greedy))
        [error] = rejected.json()["errors"]
        assert error["extensions"]["retryable"] is True
        assert 0 < error["extensions"]["retryAfterSeconds"] <= 1
        assert (await send_query(server, headers=make_bearer_header(modest))).status_code == 200
        async with open_websocket(
            server.websocket_url, headers=make_bearer_header(greedy)
        ) as client:
            await client.send({"type": "connection_init"})
            await client.receive()
            for number in range(10):
                await client.subscribe(f"{number}", REVISION)
            while (message := await client.receive())["type"] != "error":
                pass
        assert message["payload"][0]["extensions"]["code"] == "RATE_LIMITED"


async def test_metrics_require_a_token_and_anonymous_health_is_brief(
    auth_server: LiveServer, database: Database
) -> None:
    assert (await auth_server.http.get("/metrics")).status_code == 401
    token = await create_token(database, Role.ROUTER)
    metrics = await auth_server.http.get("/metrics", headers=make_bearer_header(token))
    assert "node_registry_nodes" in metrics.text
    health = (await auth_server.http.get("/health")).json()
    assert health["database"] == {"connected": True}
    assert (await auth_server.http.get("/health/live")).status_code == 200


async def test_metrics_are_public_if_configured(start_server: StartServer) -> None:
    async with start_server(auth="required", metrics_open=True) as server:
        assert (await server.http.get("/metrics")).status_code == 200


async def test_credentials_are_checked_even_where_none_are_required(
    server: LiveServer, database: Database
) -> None:
    assert (await send_query(server)).status_code == 200
    assert (await send_query(server, headers=make_bearer_header("nonsense"))).status_code == 401
    viewer = await create_token(database, Role.VIEWER)
    rejected = await server.http.post(
        "/graphql",
        json={
            "query": MAINTENANCE,
            "variables": {"input": {"nodeId": "node-2-macbook-m4max", "enabled": True}},
        },
        headers=make_bearer_header(viewer),
    )
    assert (rejected.status_code, get_error_code(rejected)) == (403, "FORBIDDEN")


async def test_registry_without_authentication_answers_to_loopback_names_only(
    server: LiveServer,
) -> None:
    port = server.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert (await send_query(server, headers={"host": f"{name}:{port}"})).status_code == 200
    rebound = await send_query(server, headers={"host": f"rebound.example:{port}"})
    assert (rebound.status_code, get_error_code(rebound)) == (403, "FORBIDDEN")


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null"])
async def test_page_of_a_foreign_origin_cannot_open_a_websocket(
    start_server: StartServer, origin: str
) -> None:
    async with start_server(allowed_origins=["https://dashboard.example"]) as server:
        with pytest.raises(Exception, match="403"):
            async with open_websocket(server.websocket_url, headers={"origin": origin}):
                pass
        for allowed in (server.url, "https://dashboard.example"):
            async with open_websocket(server.websocket_url, headers={"origin": allowed}) as client:
                await client.send({"type": "connection_init"})
                assert await client.receive() == {"type": "connection_ack"}


async def test_page_of_a_foreign_origin_cannot_read_unless_it_is_allowed(
    start_server: StartServer,
) -> None:
    async with start_server(allowed_origins=["https://dashboard.example"]) as server:
        for origin, allowed in (
            ("https://dashboard.example", "https://dashboard.example"),
            ("https://elsewhere.example", None),
        ):
            preflight = {
                "origin": origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type",
            }
            response = await server.http.options("/graphql", headers=preflight)
            assert response.headers.get("access-control-allow-origin") == allowed
            response = await send_query(server, headers={"origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in response.headers


async def test_verified_credentials_stay_valid_while_the_database_is_unavailable(
    auth_server: LiveServer, database: Database, logged: list[EventDict]
) -> None:
    token = await create_token(database, Role.VIEWER)
    async with open_websocket(
        auth_server.websocket_url, headers=make_bearer_header(token)
    ) as client:
        await client.send({"type": "connection_init"})
        await client.receive()
        await client.subscribe("1", CHANGES, after="2")
        authentication = auth_server.services.authentication
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(auth_server.services.database, "read", _raise_unavailable)
            async with asyncio.timeout(10):
                while not any(
                    event["event"] == "credential_verifier.unavailable" for event in logged
                ):
                    await asyncio.sleep(SOON)
            unknown = await send_query(
                auth_server, headers=make_bearer_header(await create_token(database, Role.VIEWER))
            )
            assert (unknown.status_code, get_error_code(unknown)) == (503, "UNAVAILABLE")
        assert authentication.is_required
        auth_server.http.headers.update(
            make_bearer_header(await create_token(database, Role.ADMIN))
        )
        await register(auth_server, "a")
        await wait_for_revision(auth_server, 3)
        message = await client.receive()
        assert message["payload"]["data"]["nodeStatusChanges"]["change"]["nodeId"] == "a"


def _raise_unavailable() -> Any:
    raise Unavailable(1)
