"""Who asks: keys over HTTP, event streams and websockets, and how soon one that ends is noticed."""

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
from tests.support.keyring import age_tokens, create_token, revoke_token, rotate_token
from tests.support.live_server import LiveServer, StartServer
from tests.support.transport_ws import Client, open_websocket

REVISION = "{ registry { revision } }"
SOON = 0.05


@pytest.fixture
async def guarded(start_server: StartServer) -> AsyncIterator[LiveServer]:
    async with start_server(auth="required", key_check_seconds=SOON) as live:
        yield live


def bearer(key: IssuedToken | str) -> dict[str, str]:
    return {"authorization": f"Bearer {key if isinstance(key, str) else key.text}"}


async def ask(
    server: LiveServer, query: str = REVISION, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    return await server.http.post("/graphql", json={"query": query}, headers=headers)


def code_of(response: httpx.Response) -> str:
    [error] = response.json()["errors"]
    code: str = error["extensions"]["code"]
    return code


async def initialised(client: Client, key: IssuedToken | None = None) -> None:
    await client.send({"type": "connection_init", "payload": bearer(key) if key else {}})


async def test_without_a_key_nothing_is_answered(guarded: LiveServer) -> None:
    for response in (
        await ask(guarded),
        await ask(guarded, "{ nonsense"),
        await guarded.http.get("/graphql", params={"query": REVISION}),
        await guarded.http.post(
            "/graphql", json={"query": CHANGES}, headers={"accept": "text/event-stream"}
        ),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert code_of(response) == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "shown",
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
async def test_what_is_no_key_is_refused(guarded: LiveServer, shown: str) -> None:
    response = await ask(guarded, headers={"authorization": shown.encode("latin-1")})  # type: ignore[dict-item]  # bytes, as they are sent
    assert response.status_code == 401
    assert code_of(response) == "UNAUTHENTICATED"


async def test_a_key_is_good_until_it_is_revoked(guarded: LiveServer, database: Database) -> None:
    key = await create_token(database, Role.VIEWER)
    assert (await ask(guarded, headers=bearer(key))).status_code == 200
    await revoke_token(database, key.token.public_id)
    async with asyncio.timeout(10):
        while (await ask(guarded, headers=bearer(key))).status_code != 401:
            await asyncio.sleep(SOON)


async def test_a_key_is_good_until_its_time_is_over(
    guarded: LiveServer, database: Database
) -> None:
    key = await create_token(database, Role.VIEWER, lifetime=timedelta(hours=1))
    assert (await ask(guarded, headers=bearer(key))).status_code == 200
    await age_tokens(database, timedelta(hours=2))
    async with asyncio.timeout(10):
        while (await ask(guarded, headers=bearer(key))).status_code != 401:
            await asyncio.sleep(SOON)


async def test_after_a_rotation_the_old_key_and_the_new_one_are_good(
    guarded: LiveServer, database: Database
) -> None:
    old = await create_token(database, Role.VIEWER)
    new = await rotate_token(database, old.token)
    for key in (old, new):
        assert (await ask(guarded, headers=bearer(key))).status_code == 200
    await age_tokens(database, timedelta(hours=2))
    async with asyncio.timeout(10):
        while (await ask(guarded, headers=bearer(old))).status_code != 401:
            await asyncio.sleep(SOON)
    assert (await ask(guarded, headers=bearer(new))).status_code == 200


async def test_a_key_is_asked_of_the_database_once(
    start_server: StartServer, database: Database
) -> None:
    key = await create_token(database, Role.VIEWER)
    async with start_server(auth="required", key_check_seconds=300) as server:
        await asyncio.gather(*(ask(server, headers=bearer(key)) for _ in range(20)))
        await revoke_token(database, key.token.public_id)
        assert (await ask(server, headers=bearer(key))).status_code == 200


async def test_the_last_use_of_a_key_is_recorded_without_a_write_for_each(
    start_server: StartServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.auth.credential_verifier.RECORD_USE_SECONDS", 0)
    key = await create_token(database, Role.VIEWER)
    async with (
        start_server(auth="required", key_check_seconds=SOON) as server,
        asyncio.timeout(10),
    ):
        await ask(server, headers=bearer(key))
        while True:
            async with database.read() as session:
                found = await session.get(type(key.token), key.token.id)
                assert found is not None
                if found.last_used_at is not None:
                    break
            await asyncio.sleep(SOON)
    assert found.last_used_at >= key.token.created_at


async def test_the_log_calls_a_caller_by_the_name_of_the_key(
    guarded: LiveServer, database: Database
) -> None:
    admin = await create_token(database, Role.ADMIN)
    operator = await create_token(database, Role.OPERATOR, name="carla")
    guarded.http.headers.update(bearer(admin))
    await register(guarded, "a")
    guarded.http.headers.update(bearer(operator))
    await guarded.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
    data = await guarded.execute("{ statusChanges(first: 1) { nodes { actor } } }")
    assert data["statusChanges"]["nodes"] == [{"actor": "carla"}]


@pytest.mark.parametrize("where", ["header", "init", "init in capitals"])
async def test_a_websocket_is_known_by_header_or_init(
    guarded: LiveServer, database: Database, where: str
) -> None:
    key = await create_token(database, Role.VIEWER)
    headers = bearer(key) if where == "header" else {}
    payload = {"Authorization": f"Bearer {key.text}"} if "capitals" in where else bearer(key)
    async with open_websocket(guarded.websocket_url, headers=headers) as client:
        await client.send({"type": "connection_init"} | ({} if headers else {"payload": payload}))
        assert await client.receive() == {"type": "connection_ack"}
        await client.subscribe("1", REVISION)
        assert (await client.receive())["type"] == "next"


async def test_a_websocket_without_a_good_key_is_closed(
    guarded: LiveServer, database: Database
) -> None:
    gone = await create_token(database, Role.VIEWER)
    await revoke_token(database, gone.token.public_id)
    for key in (None, gone):
        async with open_websocket(guarded.websocket_url) as client:
            await initialised(client, key)
            assert (await client.closed())[0] == 4401
    async with open_websocket(guarded.websocket_url, headers=bearer("nonsense")) as client:
        assert (await client.closed())[0] == 4401
    async with open_websocket(guarded.websocket_url) as client:
        await client.send({"type": "connection_init", "payload": {"authorization": ["Bearer"]}})
        assert (await client.closed())[0] == 4401
    async with open_websocket(guarded.websocket_url) as client:
        await client.subscribe("1", REVISION)
        assert (await client.closed())[0] == 4401


async def test_a_websocket_ends_with_the_key_it_was_opened_by(
    guarded: LiveServer, database: Database
) -> None:
    key, other = (
        await create_token(database, Role.VIEWER),
        await create_token(database, Role.VIEWER),
    )
    async with (
        open_websocket(guarded.websocket_url) as ending,
        open_websocket(guarded.websocket_url) as staying,
    ):
        await initialised(ending, key)
        await initialised(staying, other)
        for client in (ending, staying):
            assert await client.receive() == {"type": "connection_ack"}
            await client.subscribe("1", CHANGES)
        await revoke_token(database, key.token.public_id)
        async with asyncio.timeout(10):
            code, reason = await ending.closed()
        assert (code, reason) == (4401, "the credentials were revoked or have expired")
        guarded.http.headers.update(bearer(await create_token(database, Role.ADMIN)))
        await register(guarded, "a")
        message = await staying.receive()
        assert message["payload"]["data"]["nodeStatusChanges"]["change"]["nodeId"] == "a"


async def test_an_event_stream_ends_with_the_key_it_was_opened_by(
    guarded: LiveServer, database: Database
) -> None:
    key = await create_token(database, Role.VIEWER)
    headers = {"accept": "text/event-stream"} | bearer(key)
    async with (
        asyncio.timeout(10),
        guarded.http.stream(
            "POST", "/graphql", json={"query": CHANGES}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200
        await revoke_token(database, key.token.public_id)
        told = "".join([part async for part in response.aiter_text()])
    assert told.startswith("event: next\n")
    assert '"code":"UNAUTHENTICATED"' in told
    assert told.endswith("event: complete\ndata: \n\n")


async def test_whoever_fails_too_often_has_to_wait_and_delays_nobody_else(
    start_server: StartServer, database: Database
) -> None:
    key = await create_token(database, Role.VIEWER)
    async with start_server(auth="required", failed_logins_per_minute=3) as server:
        assert (await ask(server, headers=bearer(key))).status_code == 200
        for number in range(3):
            assert (await ask(server, headers=bearer(f"wrong-{number}"))).status_code == 401
        refused = await ask(server, headers=bearer("wrong"))
        assert refused.status_code == 429
        assert code_of(refused) == "RATE_LIMITED"
        assert 0 < int(refused.headers["retry-after"]) <= 20
        assert (await ask(server, headers=bearer(key))).status_code == 200


async def test_a_caller_that_asks_too_much_is_told_when_to_come_back(
    start_server: StartServer, database: Database
) -> None:
    greedy, modest = (
        await create_token(database, Role.VIEWER),
        await create_token(database, Role.VIEWER),
    )
    async with start_server(auth="required", requests_per_second=1) as server:
        statuses = [(await ask(server, headers=bearer(greedy))).status_code for _ in range(6)]
        assert statuses[:2] == [200] * 2
        assert 429 in statuses[2:]
        refused = await ask(server, headers=bearer(greedy))
        [error] = refused.json()["errors"]
        assert error["extensions"]["retryable"] is True
        assert 0 < error["extensions"]["retryAfterSeconds"] <= 1
        assert (await ask(server, headers=bearer(modest))).status_code == 200
        async with open_websocket(server.websocket_url, headers=bearer(greedy)) as client:
            await client.send({"type": "connection_init"})
            await client.receive()
            for number in range(10):
                await client.subscribe(f"{number}", REVISION)
            while (message := await client.receive())["type"] != "error":
                pass
        assert message["payload"][0]["extensions"]["code"] == "RATE_LIMITED"


async def test_metrics_are_for_who_is_known_and_health_tells_a_stranger_little(
    guarded: LiveServer, database: Database
) -> None:
    assert (await guarded.http.get("/metrics")).status_code == 401
    key = await create_token(database, Role.ROUTER)
    metrics = await guarded.http.get("/metrics", headers=bearer(key))
    assert "node_registry_nodes" in metrics.text
    health = (await guarded.http.get("/health")).json()
    assert health["database"] == {"connected": True}
    assert (await guarded.http.get("/health/live")).status_code == 200


async def test_metrics_may_be_open(start_server: StartServer) -> None:
    async with start_server(auth="required", metrics_open=True) as server:
        assert (await server.http.get("/metrics")).status_code == 200


async def test_credentials_are_looked_at_even_where_none_are_needed(
    server: LiveServer, database: Database
) -> None:
    assert (await ask(server)).status_code == 200
    assert (await ask(server, headers=bearer("nonsense"))).status_code == 401
    viewer = await create_token(database, Role.VIEWER)
    refused = await server.http.post(
        "/graphql",
        json={
            "query": MAINTENANCE,
            "variables": {"input": {"nodeId": "node-2-macbook-m4max", "enabled": True}},
        },
        headers=bearer(viewer),
    )
    assert (refused.status_code, code_of(refused)) == (403, "FORBIDDEN")


async def test_an_open_registry_answers_under_loopback_names_alone(server: LiveServer) -> None:
    port = server.url.rpartition(":")[2]
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert (await ask(server, headers={"host": f"{name}:{port}"})).status_code == 200
    rebound = await ask(server, headers={"host": f"rebound.example:{port}"})
    assert (rebound.status_code, code_of(rebound)) == (403, "FORBIDDEN")


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null"])
async def test_a_page_of_another_origin_opens_no_websocket(
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


async def test_pages_of_other_origins_may_not_read_unless_they_are_named(
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
            response = await ask(server, headers={"origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in response.headers


async def test_what_was_granted_goes_on_while_the_database_is_away(
    guarded: LiveServer, database: Database, logged: list[EventDict]
) -> None:
    key = await create_token(database, Role.VIEWER)
    async with open_websocket(guarded.websocket_url, headers=bearer(key)) as client:
        await client.send({"type": "connection_init"})
        await client.receive()
        await client.subscribe("1", CHANGES, after="2")
        keyring = guarded.services.authentication
        with pytest.MonkeyPatch.context() as away:
            away.setattr(guarded.services.database, "read", _away)
            async with asyncio.timeout(10):
                while not any(
                    event["event"] == "credential_verifier.unavailable" for event in logged
                ):
                    await asyncio.sleep(SOON)
            unknown = await ask(guarded, headers=bearer(await create_token(database, Role.VIEWER)))
            assert (unknown.status_code, code_of(unknown)) == (503, "UNAVAILABLE")
        assert keyring.is_required
        guarded.http.headers.update(bearer(await create_token(database, Role.ADMIN)))
        await register(guarded, "a")
        await wait_for_revision(guarded, 3)
        message = await client.receive()
        assert message["payload"]["data"]["nodeStatusChanges"]["change"]["nodeId"] == "a"


def _away() -> Any:
    raise Unavailable(1)
