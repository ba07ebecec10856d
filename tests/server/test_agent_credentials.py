"""The node token: how an agent gets, stores, rotates and replaces it."""

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
from tests.support.live_server import LiveServer, StartServer
from tests.support.tokens import (
    DAY,
    HOUR,
    age_tokens,
    create_enrolment,
    parse_token_text,
    revoke_token,
)
from tests.support.waiting import wait_until

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def registry(start_server: StartServer) -> AsyncIterator[LiveServer]:
    options = {"key_check_seconds": 0.05, "heartbeat_min_interval_seconds": 0.1}
    async with start_server(auth="required", **options) as live:
        yield live


@pytest.fixture
def database(registry: LiveServer) -> Database:
    return registry.services.database


@asynccontextmanager
async def open_agent(
    registry: LiveServer, directory: Path, token: IssuedToken | None = None
) -> AsyncIterator[Runner]:
    """Yield the runner of an agent, and close its transport at the end."""
    url = registry.graphql_url
    credentials = Credentials(
        directory, SecretStr(token.text) if token else None, lambda low, _high: low
    )
    machine = observe_machine()
    boot_id = identity.prepare_boot_id(directory, machine.hostname, machine.local_ip)
    async with aclosing(
        AuthenticatedTransport(credentials, lambda bearer: HttpTransport(url, bearer))
    ) as transport:
        settings = load_settings({"registry_url": url})
        schedule = Schedule(Clock())
        yield Runner(
            transport, credentials, schedule, directory, settings, boot_id, max_retry_seconds=0.0
        )


async def read_valid_token(directory: Path, database: Database) -> Token:
    stored = read_node_token(directory)
    assert stored is not None
    async with database.read() as session:
        found = await tokens.find_valid_token(
            session, parse_token_text(stored.token.get_secret_value())
        )
    assert found is not None, "it is valid"
    return found


async def count_valid_tokens(database: Database) -> int:
    [(count,)] = await fetch_rows(
        database,
        "SELECT count(*) FROM tokens WHERE role = 'agent' AND revoked_at IS NULL"
        " AND expires_at > now()",
    )
    assert isinstance(count, int)
    return count


async def test_enrolment_token_yields_node_token_that_later_starts_use(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database, uses=1)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        node_token = await read_valid_token(tmp_path, database)
        assert node_token.nodes == [run.node_id]
        await run.send_heartbeat()
    await revoke_token(database, enrolment.token.public_id)
    for token in (enrolment, None):
        async with open_agent(registry, tmp_path, token) as run:
            await run.register()
            await run.send_heartbeat()
    assert (await read_valid_token(tmp_path, database)).id == node_token.id


async def test_agent_killed_before_storing_its_token_gets_another(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database, uses=1)
    machine = observe_machine()
    boot_id = identity.prepare_boot_id(tmp_path, machine.hostname, machine.local_ip)
    registration = build_registration_input(load_settings({}), machine, boot_id)
    async with aclosing(HttpTransport(registry.graphql_url, enrolment.text)) as transport:
        await transport.execute(documents.REGISTER_NODE, {"input": registration}, RegisterNodeData)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.send_heartbeat()
    assert await count_valid_tokens(database) == 1


async def test_agent_killed_between_storing_token_and_node_id_stays_the_same_node(
    registry: LiveServer, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolment = await create_enrolment(database, uses=1)
    with monkeypatch.context() as killed:
        killed.setattr(identity, "save_accepted_boot", lambda *_: sys.exit(9))
        async with open_agent(registry, tmp_path, enrolment) as run:
            with pytest.raises(SystemExit):
                await run.register()
    assert identity.read_node_id(tmp_path) is None
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        assert (await read_valid_token(tmp_path, database)).nodes == [run.node_id]
    assert await count_valid_tokens(database) == 1


async def test_token_is_rotated_when_due_and_the_new_one_is_used_immediately(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        now = (await run.send_heartbeat()).received_at
        first = await read_valid_token(tmp_path, database)
        for early in (now, now + 50 * DAY):
            await rotate_token_if_due(run.transport, run.credentials, early)
            assert (await read_valid_token(tmp_path, database)).id == first.id
        await rotate_token_if_due(run.transport, run.credentials, now + 60 * DAY)
        second = await read_valid_token(tmp_path, database)
        assert second.replaces == first.id
        await revoke_token(database, first.public_id)
        await run.send_heartbeat()


async def test_agent_killed_before_storing_its_rotated_token_is_not_locked_out(
    start_server: StartServer, tmp_path: Path
) -> None:
    """The agent is killed between the response and the write, and notices during the overlap."""
    options = {"key_check_seconds": 0.05, "node_key_overlap_seconds": 86400}
    async with start_server(auth="required", **options) as registry:
        database = registry.services.database
        async with open_agent(registry, tmp_path, await create_enrolment(database)) as run:
            await run.register()
            now = (await run.send_heartbeat()).received_at
            await rotate_token_if_due(run.transport, run.credentials, now)
            await run.transport.execute(documents.ROTATE_NODE_KEY, {}, RotateNodeKeyData)
        old = await read_valid_token(tmp_path, database)
        async with open_agent(registry, tmp_path) as run:
            await run.register()
            await rotate_token_if_due(run.transport, run.credentials, now + 20 * HOUR)
        new = await read_valid_token(tmp_path, database)
        assert new.replaces == old.id
        await age_tokens(database, DAY)
        async with open_agent(registry, tmp_path) as run:
            await run.register()
            await run.send_heartbeat()
        assert await count_valid_tokens(database) == 1


@asynccontextmanager
async def send_heartbeats(run: Runner) -> AsyncIterator[None]:
    """Send heartbeats in the background meanwhile."""
    run.max_retry_seconds = None
    task = asyncio.create_task(run.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def count_heartbeats(database: Database) -> int:
    [(count,)] = await fetch_rows(database, "SELECT count(*) FROM heartbeat_log")
    assert isinstance(count, int)
    return count


async def wait_for_heartbeat(database: Database) -> None:
    before = await count_heartbeats(database)

    async def has_another_heartbeat() -> bool:
        return await count_heartbeats(database) != before

    await wait_until(has_another_heartbeat, seconds=20)


async def test_agent_that_runs_long_rotates_its_token(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    async with open_agent(registry, tmp_path, await create_enrolment(database)) as run:
        await run.register()
    stored = read_node_token(tmp_path)
    assert stored is not None
    save_node_token(tmp_path, stored.model_copy(update={"obtained_at": NOON - 1000 * DAY}))
    first = await read_valid_token(tmp_path, database)
    async with open_agent(registry, tmp_path) as run, send_heartbeats(run):
        second = await _wait_for_token_other_than(first.public_id, tmp_path)
        await revoke_token(database, first.public_id)
        await wait_for_heartbeat(database)
        assert await _wait_for_token_other_than(first.public_id, tmp_path) == second, (
            "which is young"
        )


async def test_revoked_token_is_replaced_by_enrolment_while_heartbeats_continue(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database)
    async with open_agent(registry, tmp_path, enrolment) as run, send_heartbeats(run):
        first = await _wait_for_token_other_than(None, tmp_path)
        await revoke_token(database, first)
        await _wait_for_token_other_than(first, tmp_path)
        await wait_for_heartbeat(database)


async def _wait_for_token_other_than(former: str | None, directory: Path) -> str:
    """Return the public id of the stored token once it is another one than `former`."""
    async with asyncio.timeout(20):
        while True:
            if stored := read_node_token(directory):
                public_id = parse_token_text(stored.token.get_secret_value()).public_id
                if public_id != former:
                    return public_id
            await asyncio.sleep(0.02)


async def test_revoked_token_without_enrolment_token_is_rejected(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
    await revoke_token(database, (await read_valid_token(tmp_path, database)).public_id)
    async with open_agent(registry, tmp_path) as run:
        with pytest.raises(RequestRejectedError) as rejected:
            await run.register()
        assert rejected.value.code == UNAUTHENTICATED
    assert read_node_token(tmp_path) is not None, (
        "it may become valid again when a backup is restored"
    )


async def test_node_with_a_valid_token_is_not_enrolled_again_by_an_agent_that_lost_it(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.send_heartbeat()
        node_id = run.node_id
    (tmp_path / CREDENTIAL_FILE).unlink()
    async with open_agent(registry, tmp_path, enrolment) as run:
        with pytest.raises(RequestRejectedError, match="already has a token"):
            await run.register()
    assert node_id is not None
    await revoke_token(database, node_id)
    async with open_agent(registry, tmp_path, enrolment) as run:
        await run.register()
        assert run.node_id == node_id


async def run_agent_command(
    registry: LiveServer, directory: Path, *arguments: str, **environment: str
) -> tuple[int, str]:
    """Run a command of the agent; return its exit status and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "--verbose", *arguments),
        env=os.environ
        | {"NODE_AGENT_REGISTRY_URL": registry.url, "NODE_AGENT_STATE_DIR": str(directory)}
        | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_agent_commands_use_the_token_and_never_print_it(
    registry: LiveServer, database: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(database)
    exit_status, bootstrap_output = await run_agent_command(
        registry, tmp_path, "bootstrap", NODE_AGENT_TOKEN=enrolment.text
    )
    assert exit_status == 0, bootstrap_output
    exit_status, status_output = await run_agent_command(registry, tmp_path, "status", "--json")
    assert exit_status == 0, status_output
    secret = json.loads((tmp_path / CREDENTIAL_FILE).read_text())["key"]
    assert secret.startswith("nrk_")
    for output in (bootstrap_output, status_output):
        assert secret[14:] not in output
        assert enrolment.text[14:] not in output
