"""The node's own key: how an agent comes by it, keeps it, rotates it, and goes on without it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from agent import documents, identity
from agent.credentials import (
    CREDENTIAL_FILE,
    AuthenticatedTransport,
    Credentials,
    read_node_token,
    save_node_token,
)
from agent.errors import UNAUTHENTICATED, RequestRejectedError
from agent.http_transport import HttpTransport
from agent.machine import observe_machine
from agent.pace import Clock, Schedule
from agent.replies import RegisterNodeData, RotateNodeKeyData
from agent.rotation import rotate_token_if_due
from agent.runner import Runner, build_registration_input
from agent.settings import load_settings
from db.access import tokens
from db.access.token_changes import IssuedToken
from db.core.database import Database
from db.core.tables import Token
from tests.support.fleet import fetch_rows
from tests.support.keyring import (
    DAY,
    HOUR,
    age_tokens,
    create_enrolment,
    parse_token_text,
    revoke_token,
)
from tests.support.live_server import LiveServer, StartServer
from tests.support.waiting import wait_until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def registry(start_server: StartServer) -> AsyncIterator[LiveServer]:
    options = {"key_check_seconds": 0.05, "heartbeat_min_interval_seconds": 0.1}
    async with start_server(auth="required", **options) as live:
        yield live


@pytest.fixture
def keys(registry: LiveServer) -> Database:
    return registry.services.database


@asynccontextmanager
async def running(
    registry: LiveServer, directory: Path, token: IssuedToken | None = None
) -> AsyncIterator[Runner]:
    """An agent, from its start to its end."""
    url = registry.graphql_url
    shown = Credentials(directory, SecretStr(token.text) if token else None, lambda low, _high: low)
    machine = observe_machine()
    boot_id = identity.prepare_boot_id(directory, machine.hostname, machine.local_ip)
    async with aclosing(
        AuthenticatedTransport(shown, lambda bearer: HttpTransport(url, bearer))
    ) as connection:
        settings = load_settings({"registry_url": url})
        schedule = Schedule(Clock())
        yield Runner(
            connection, shown, schedule, directory, settings, boot_id, max_retry_seconds=0.0
        )


async def key_in(directory: Path, keys: Database) -> Token:
    kept = read_node_token(directory)
    assert kept is not None
    async with keys.read() as session:
        found = await tokens.find_valid_token(
            session, parse_token_text(kept.token.get_secret_value())
        )
    assert found is not None, "it stands"
    return found


async def standing_keys(keys: Database) -> int:
    [(count,)] = await fetch_rows(
        keys,
        "SELECT count(*) FROM tokens WHERE role = 'agent' AND revoked_at IS NULL"
        " AND expires_at > now()",
    )
    assert isinstance(count, int)
    return count


async def test_an_enrolment_key_brings_a_key_that_later_starts_go_by(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys, uses=1)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        key = await key_in(tmp_path, keys)
        assert key.nodes == [run.node_id]
        await run.send_heartbeat()
    await revoke_token(keys, enrolment.token.public_id)
    for token in (enrolment, None):
        async with running(registry, tmp_path, token) as run:
            await run.register()
            await run.send_heartbeat()
    assert (await key_in(tmp_path, keys)).id == key.id


async def test_an_agent_that_died_before_it_could_keep_its_key_gets_another(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys, uses=1)
    machine = observe_machine()
    boot_id = identity.prepare_boot_id(tmp_path, machine.hostname, machine.local_ip)
    said = build_registration_input(load_settings({}), machine, boot_id)
    async with aclosing(HttpTransport(registry.graphql_url, enrolment.text)) as connection:
        await connection.execute(documents.REGISTER_NODE, {"input": said}, RegisterNodeData)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.send_heartbeat()
    assert await standing_keys(keys) == 1


async def test_an_agent_that_died_between_its_key_and_its_id_is_the_same_node(
    registry: LiveServer, keys: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolment = await create_enrolment(keys, uses=1)
    with monkeypatch.context() as killed:
        killed.setattr(identity, "save_accepted_boot", lambda *_: sys.exit(9))
        async with running(registry, tmp_path, enrolment) as run:
            with pytest.raises(SystemExit):
                await run.register()
    assert identity.read_node_id(tmp_path) is None
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        assert (await key_in(tmp_path, keys)).nodes == [run.node_id]
    assert await standing_keys(keys) == 1


async def test_a_key_is_rotated_in_time_and_the_new_one_used_at_once(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        now = (await run.send_heartbeat()).received_at
        first = await key_in(tmp_path, keys)
        for early in (now, now + 50 * DAY):
            await rotate_token_if_due(run.transport, run.credentials, early)
            assert (await key_in(tmp_path, keys)).id == first.id
        await rotate_token_if_due(run.transport, run.credentials, now + 60 * DAY)
        second = await key_in(tmp_path, keys)
        assert second.replaces == first.id
        await revoke_token(keys, first.public_id)
        await run.send_heartbeat()


async def test_an_agent_that_died_before_it_could_keep_a_rotated_key_is_not_locked_out(
    start_server: StartServer, tmp_path: Path
) -> None:
    """It was killed between the answer and the write; in the overlap it finds that out."""
    options = {"key_check_seconds": 0.05, "node_key_overlap_seconds": 86400}
    async with start_server(auth="required", **options) as registry:
        keys = registry.services.database
        async with running(registry, tmp_path, await create_enrolment(keys)) as run:
            await run.register()
            now = (await run.send_heartbeat()).received_at
            await rotate_token_if_due(run.transport, run.credentials, now)
            await run.transport.execute(documents.ROTATE_NODE_KEY, {}, RotateNodeKeyData)
        old = await key_in(tmp_path, keys)
        async with running(registry, tmp_path) as run:
            await run.register()
            await rotate_token_if_due(run.transport, run.credentials, now + 20 * HOUR)
        new = await key_in(tmp_path, keys)
        assert new.replaces == old.id
        await age_tokens(keys, DAY)
        async with running(registry, tmp_path) as run:
            await run.register()
            await run.send_heartbeat()
        assert await standing_keys(keys) == 1


@asynccontextmanager
async def beating(run: Runner) -> AsyncIterator[None]:
    """Meanwhile it sends its heartbeats."""
    run.max_retry_seconds = None
    task = asyncio.create_task(run.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard(keys: Database) -> int:
    [(count,)] = await fetch_rows(keys, "SELECT count(*) FROM heartbeat_log")
    assert isinstance(count, int)
    return count


async def wait_for_heartbeat(keys: Database) -> None:
    before = await heard(keys)

    async def is_heard_again() -> bool:
        return await heard(keys) != before

    await wait_until(is_heard_again, seconds=20)


async def test_an_agent_that_runs_for_long_outlives_its_key(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    async with running(registry, tmp_path, await create_enrolment(keys)) as run:
        await run.register()
    kept = read_node_token(tmp_path)
    assert kept is not None
    save_node_token(tmp_path, kept.model_copy(update={"obtained_at": NOON - 1000 * DAY}))
    first = await key_in(tmp_path, keys)
    async with running(registry, tmp_path) as run, beating(run):
        second = await _key_other_than(first.public_id, tmp_path)
        await revoke_token(keys, first.public_id)
        await wait_for_heartbeat(keys)
        assert await _key_other_than(first.public_id, tmp_path) == second, "which is young"


async def test_a_key_that_was_revoked_is_followed_by_a_new_one_while_heartbeats_go_on(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run, beating(run):
        first = await _key_other_than(None, tmp_path)
        await revoke_token(keys, first)
        await _key_other_than(first, tmp_path)
        await wait_for_heartbeat(keys)


async def _key_other_than(former: str | None, directory: Path) -> str:
    """Its public id."""
    async with asyncio.timeout(20):
        while True:
            if kept := read_node_token(directory):
                public_id = parse_token_text(kept.token.get_secret_value()).public_id
                if public_id != former:
                    return public_id
            await asyncio.sleep(0.02)


async def test_a_key_that_was_revoked_is_refused_where_there_is_no_enrolment_key(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
    await revoke_token(keys, (await key_in(tmp_path, keys)).public_id)
    async with running(registry, tmp_path) as run:
        with pytest.raises(RequestRejectedError) as refused:
            await run.register()
        assert refused.value.code == UNAUTHENTICATED
    assert read_node_token(tmp_path) is not None, (
        "it may be good again, as when a backup is put back"
    )


async def test_a_node_whose_key_stands_is_not_enrolled_by_who_has_lost_it(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.send_heartbeat()
        node_id = run.node_id
    (tmp_path / CREDENTIAL_FILE).unlink()
    async with running(registry, tmp_path, enrolment) as run:
        with pytest.raises(RequestRejectedError, match="already has a token"):
            await run.register()
    assert node_id is not None
    await revoke_token(keys, node_id)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        assert run.node_id == node_id


async def agent(registry: LiveServer, directory: Path, *words: str, **told: str) -> tuple[int, str]:
    """The exit status, and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "--verbose", *words),
        env=os.environ
        | {"NODE_AGENT_REGISTRY_URL": registry.url, "NODE_AGENT_STATE_DIR": str(directory)}
        | told,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_commands_go_by_the_key_and_never_write_it(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    status, told = await agent(registry, tmp_path, "bootstrap", NODE_AGENT_TOKEN=enrolment.text)
    assert status == 0, told
    status, shown = await agent(registry, tmp_path, "status", "--json")
    assert status == 0, shown
    secret = json.loads((tmp_path / CREDENTIAL_FILE).read_text())["key"]
    assert secret.startswith("nrk_")
    for text in (told, shown):
        assert secret[14:] not in text
        assert enrolment.text[14:] not in text
