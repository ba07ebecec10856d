"""Addresses and origins of requests that proxies forward, over every transport."""

from collections.abc import Mapping
from typing import Any

import pytest

from db.core.database import Database
from db.core.enums import Role
from tests.support.api import CHANGES, MAINTENANCE
from tests.support.fleet import fetch_rows
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import create_token
from tests.support.transport_ws import PROTOCOL, open_websocket

CLIENT = "203.0.113.7"
FORWARDED = {"x-forwarded-for": f"198.51.100.1, {CLIENT}"}
SEEDED = "node-2-macbook-m4max"
MAINTAIN = {"query": MAINTENANCE, "variables": {"input": {"nodeId": SEEDED, "enabled": True}}}
ADDRESSES = "SELECT address, peer_address FROM audit_log"


async def set_maintenance(server: LiveServer, transport: str, headers: Mapping[str, str]) -> None:
    if transport == "websocket":
        async with open_websocket(server.websocket_url, headers=headers) as client:
            await client.send({"type": "connection_init"})
            await client.receive()
            await client.send({"id": "1", "type": "subscribe", "payload": MAINTAIN})
            assert (await client.receive())["type"] == "next"
        return
    accept = "text/event-stream" if transport == "sse" else "application/json"
    response = await server.http.post(
        "/graphql", json=MAINTAIN, headers={"accept": accept, **headers}
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("transport", ["http", "sse", "websocket"])
async def test_the_audit_log_has_the_client_and_the_proxy_apart(
    start_server: StartServer, database: Database, transport: str
) -> None:
    async with start_server(trusted_proxies="127.0.0.1") as server:
        await set_maintenance(server, transport, FORWARDED)
        query = "{ auditLog(first: 1) { nodes { address peerAddress } } }"
        data = await server.execute(query)
    assert data["auditLog"]["nodes"] == [{"address": CLIENT, "peerAddress": "127.0.0.1"}]
    assert await fetch_rows(database, ADDRESSES) == [(CLIENT, "127.0.0.1")]


@pytest.mark.parametrize("transport", ["http", "sse", "websocket"])
@pytest.mark.parametrize("trusted", ["", "192.0.2.0/24"])
async def test_a_peer_that_is_not_trusted_forwards_nothing_whatever_uvicorns_environment_says(
    start_server: StartServer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    trusted: str,
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    async with start_server(trusted_proxies=trusted) as server:
        headers = FORWARDED | {"forwarded": f"for={CLIENT}"}
        await set_maintenance(server, transport, headers)
    assert await fetch_rows(database, ADDRESSES) == [("127.0.0.1", "127.0.0.1")]


async def test_a_very_long_forwarded_address_reaches_neither_limits_nor_log(
    start_server: StartServer,
) -> None:
    async with start_server(trusted_proxies="127.0.0.1", auth="required") as server:
        for value in ("x" * 8100, "1." * 4050, "for=" + "y" * 8000):
            headers = {"x-forwarded-for": value, "authorization": "Bearer nonsense"}
            response = await server.http.post("/graphql", json=MAINTAIN, headers=headers)
            assert response.status_code == 401
        failed_logins = server.services.authentication.failed_logins
        assert [key for key, _ in failed_logins.collect_use(60)] == ["127.0.0.1"]


async def test_failed_logins_are_counted_by_the_address_of_the_client(
    start_server: StartServer,
) -> None:
    options: dict[str, Any] = {"auth": "required", "failed_logins_per_minute": 1}
    async with start_server(trusted_proxies="127.0.0.1", **options) as server:

        async def log_in(address: str) -> int:
            headers = {"x-forwarded-for": address, "authorization": "Bearer nonsense"}
            return (await server.http.post("/graphql", json={}, headers=headers)).status_code

        assert [await log_in(CLIENT) for _ in range(2)] == [401, 429]
        assert await log_in("203.0.113.8") == 401
        assert await log_in(f"198.51.100.1, {CLIENT}:80") == 429


async def test_anonymous_callers_behind_a_proxy_have_limits_of_their_own(
    start_server: StartServer,
) -> None:
    options: dict[str, Any] = {"max_subscriptions_per_caller": 1, "bookmark_interval_seconds": 0.1}
    async with start_server(trusted_proxies="127.0.0.1", **options) as server:

        async def follow(address: str) -> str:
            headers = {"accept": "text/event-stream", "x-forwarded-for": address}
            request = server.http.stream(
                "POST", "/graphql", json={"query": CHANGES}, headers=headers
            )
            async with request as response:
                return await anext(response.aiter_text())

        held = server.http.stream(
            "POST",
            "/graphql",
            json={"query": CHANGES},
            headers={"accept": "text/event-stream", "x-forwarded-for": CLIENT},
        )
        async with held as response:
            assert "Bookmark" in await anext(response.aiter_text())
            assert "RATE_LIMITED" in await follow(CLIENT)
            assert "Bookmark" in await follow("203.0.113.8")


async def open_from_page(server: LiveServer, origin: str, headers: Mapping[str, str]) -> int:
    """Return the status with which a websocket of a page of this origin is answered."""
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-protocol": PROTOCOL,
    }
    request = server.http.stream(
        "GET", "/graphql", headers={**upgrade, "origin": origin, **headers}
    )
    async with request as response:
        return response.status_code


async def test_a_page_opens_a_websocket_at_the_origin_that_the_proxy_forwards_alone(
    start_server: StartServer,
) -> None:
    https = {"x-forwarded-proto": "https"}
    cases: list[tuple[str, dict[str, str], int]] = [
        ("https://reg.example", {"host": "reg.example", **https}, 101),
        ("https://reg.example", {"host": "reg.example:443", "x-forwarded-proto": "wss"}, 101),
        ("https://reg.example", {"forwarded": "proto=https;host=reg.example"}, 101),
        ("https://reg.example:8443", {"x-forwarded-host": "REG.example:8443", **https}, 101),
        ("http://reg.example", {"host": "reg.example:80", "x-forwarded-proto": "http"}, 101),
        ("http://reg.example", {"host": "reg.example", **https}, 403),
        ("https://reg.example", {"host": "reg.example", "x-forwarded-proto": "http"}, 403),
        ("https://reg.example", {"host": "reg.example"}, 403),
        ("https://evil.example", {"host": "reg.example", **https}, 403),
        ("https://evil.example", {"x-forwarded-host": "reg.example", **https}, 403),
    ]
    async with start_server(trusted_proxies="127.0.0.1") as server:
        for origin, headers, status in cases:
            assert await open_from_page(server, origin, headers) == status, (origin, headers)


async def test_a_page_gains_nothing_by_headers_that_no_trusted_proxy_sent(
    server: LiveServer,
) -> None:
    headers = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}
    assert await open_from_page(server, "https://evil.example", headers) == 403
    assert await open_from_page(server, server.url, headers) == 101


async def test_an_open_registry_behind_a_proxy_answers_under_loopback_names_alone(
    start_server: StartServer,
) -> None:
    cases: list[tuple[dict[str, str], int]] = [
        ({}, 200),
        ({"x-forwarded-host": "localhost:9205"}, 200),
        ({"host": "rebound.example"}, 403),
        ({"host": "rebound.example", "x-forwarded-host": "127.0.0.1"}, 403),
        ({"x-forwarded-host": "rebound.example"}, 403),
        ({"forwarded": "host=rebound.example"}, 403),
    ]
    async with start_server(trusted_proxies="127.0.0.1") as server:
        for headers, status in cases:
            response = await server.http.post(
                "/graphql", json={"query": "{ __typename }"}, headers=headers
            )
            assert response.status_code == status, headers


async def test_rejections_have_both_addresses_too(
    start_server: StartServer, database: Database
) -> None:
    viewer = await create_token(database, Role.VIEWER)
    async with start_server(trusted_proxies="127.0.0.1", auth="required") as server:
        headers = {**FORWARDED, "authorization": f"Bearer {viewer.text}"}
        response = await server.http.post("/graphql", json=MAINTAIN, headers=headers)
        assert response.status_code == 403
    assert (CLIENT, "127.0.0.1") in await fetch_rows(
        database, f"{ADDRESSES} WHERE outcome = 'FORBIDDEN'"
    )
