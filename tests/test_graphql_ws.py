"""The registry's websocket as graphql-ws meets it: the protocol's reference client, from npm."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from api import register
from conftest import LiveServer

HERE = Path(__file__).parent / "graphql_ws"
SECONDS = 60


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client and what it needs; skipped, with the reason, where npm cannot install it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not on this machine: graphql-ws was not tried")
    folder = tmp_path_factory.mktemp("graphql_ws")
    shutil.copytree(HERE, folder, dirs_exist_ok=True)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"npm cannot install graphql-ws: {done.stderr.strip()[-300:]}")
    return folder / "client.mjs"


async def play(client: Path, scenario: str, server: LiveServer) -> Any:
    process = await asyncio.create_subprocess_exec(
        *("node", client, scenario, server.websocket_url), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    return json.loads(output)


async def test_a_query_is_answered(client: Path, server: LiveServer) -> None:
    assert await play(client, "query", server) == [{"data": {"registry": {"mode": "NORMAL"}}}]


async def test_a_subscription_is_followed_and_completed(client: Path, server: LiveServer) -> None:
    await register(server, "a")
    seen = await play(client, "subscribe", server)
    revisions = [result["data"]["nodeStatusChanges"]["change"]["revision"] for result in seen]
    assert revisions == ["1", "2"]
    async with asyncio.timeout(10):
        while server.services.feed.subscribers:
            await asyncio.sleep(0.005)


async def test_a_document_that_is_not_valid_is_refused(client: Path, server: LiveServer) -> None:
    [error] = await play(client, "refused", server)
    assert error["extensions"]["code"] == "BAD_INPUT"


async def test_pings_are_answered(client: Path, server: LiveServer) -> None:
    assert await play(client, "keepAlive", server) == "pong"


@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("duplicateId", 4409),
        ("unauthorized", 4401),
        ("tooManyInits", 4429),
        ("invalidMessage", 4400),
    ],
)
async def test_a_breach_of_the_protocol_closes_with_its_code(
    client: Path, server: LiveServer, scenario: str, code: int
) -> None:
    assert await play(client, scenario, server) == code
