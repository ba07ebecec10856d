"""The registry's websocket, used by graphql-ws, the protocol's reference client from npm."""

from pathlib import Path

import pytest

from tests.support import npm
from tests.support.api import register
from tests.support.live_server import LiveServer
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return npm.install_package("graphql_ws", tmp_path_factory.mktemp("graphql_ws"))


async def test_query_is_answered(client: Path, server: LiveServer) -> None:
    assert await npm.play_scenario(client, "query", server.websocket_url) == [
        {"data": {"registry": {"mode": "NORMAL"}}}
    ]


async def test_subscription_delivers_events_and_completes(client: Path, server: LiveServer) -> None:
    await register(server, "a")
    results = await npm.play_scenario(client, "subscribe", server.websocket_url)
    revisions = [result["data"]["nodeStatusChanges"]["change"]["revision"] for result in results]
    assert revisions == ["1", "2"]
    await wait_until(lambda: not server.services.change_feed.subscriber_count)


async def test_invalid_document_is_rejected(client: Path, server: LiveServer) -> None:
    [error] = await npm.play_scenario(client, "refused", server.websocket_url)
    assert error["extensions"]["code"] == "BAD_INPUT"


async def test_pings_are_answered(client: Path, server: LiveServer) -> None:
    assert await npm.play_scenario(client, "keepAlive", server.websocket_url) == "pong"


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("duplicateId", 4409),
        ("unauthorized", 4401),
        ("tooManyInits", 4429),
        ("invalidMessage", 4400),
    ],
)
async def test_protocol_violation_closes_with_its_code(
    client: Path, server: LiveServer, scenario: str, code: int
) -> None:
    assert await npm.play_scenario(client, scenario, server.websocket_url) == code
