"""The node's own key: how an agent comes by it, keeps it, rotates it, and goes on without it."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from agent import documents, identity
from agent.client import (
    UNAUTHENTICATED,
    Connection,
    RefusedError,
    RegistryAwayError,
    http_transport,
)
from agent.credentials import (
    MAX_RETRY_SECONDS,
    NODE_KEY,
    ROTATE_BY,
    ROTATE_FROM,
    Credentials,
    KeyedConnection,
    keep_key,
    read_key,
)
from agent.identity import StateError
from agent.machine import observe
from agent.pace import Clock, Schedule
from agent.replies import RegisterNodeData, RotateNodeKeyData
from agent.rotation import rotate_when_due
from agent.runner import Run, registration_input
from agent.settings import load_settings
from db.access import tokens
from db.access.token_changes import MadeToken
from db.core.database import Database
from db.core.tables import Token
from tests.support.fleet import rows
from tests.support.keyring import DAY, HOUR, age_keys, create_enrolment, presented, revoke
from tests.support.live_server import LiveServer, StartServer
from tests.unit.test_agent_broken_network import (
    HANG,
    NODE,
    Time,
    new_run,
    recorded,
    refusal,
    remote,
    reply,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def least(low: float, _high: float) -> float:
    return low


def most(_low: float, high: float) -> float:
    return high


def credentials(
    directory: Path, told: str | None = "the-token", uniform: Any = least
) -> Credentials:
    return Credentials(directory, SecretStr(told) if told else None, uniform)


def test_the_key_is_kept_for_its_owners_eyes_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        credentials(tmp_path).keep(SecretStr("the-key"), NOON)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / NODE_KEY).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [NODE_KEY]
    kept = read_key(tmp_path)
    assert kept is not None
    assert (kept.key.get_secret_value(), kept.expires_at) == ("the-key", NOON)


def test_the_key_is_not_shown_when_it_is_printed(tmp_path: Path) -> None:
    credentials(tmp_path).keep(SecretStr("the-key"), None)
    assert "the-key" not in f"{read_key(tmp_path)!r} {read_key(tmp_path)}"


def test_the_key_goes_before_the_token_from_then_on(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    assert shown.bearer == "the-token"
    shown.keep(SecretStr("the-key"), None)
    assert shown.bearer == "the-key"
    assert credentials(tmp_path).bearer == "the-key"
    assert credentials(tmp_path, None).bearer == "the-key"


def test_the_token_takes_the_place_of_a_key_until_it_is_tried_again(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.keep(SecretStr("the-key"), None)
    assert shown.show_token()
    assert shown.bearer == "the-token"
    assert not shown.show_token()
    shown.show_own()
    assert shown.bearer == "the-key"


def test_without_a_choice_nothing_takes_the_place_of_what_is_shown(tmp_path: Path) -> None:
    assert not credentials(tmp_path).show_token()
    credentials(tmp_path).keep(SecretStr("the-key"), None)
    assert not credentials(tmp_path, None).show_token()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "nrk_secret"}', "\udcff"])
def test_a_damaged_key_is_not_taken_for_a_missing_one(tmp_path: Path, text: str) -> None:
    (tmp_path / NODE_KEY).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StateError, match="damaged") as failure:
        credentials(tmp_path)
    assert "nrk_secret" not in str(failure.value)


@pytest.mark.parametrize(("uniform", "part"), [(least, ROTATE_FROM), (most, ROTATE_BY)])
def test_a_key_is_due_for_rotation_after_two_thirds_of_its_life_about(
    tmp_path: Path, uniform: Any, part: float
) -> None:
    shown = credentials(tmp_path, uniform=uniform)
    shown.keep(SecretStr("the-key"), NOON + 90 * DAY)
    due = NOON + part * 90 * DAY
    assert not shown.rotation_is_due(NOON), "the first heartbeat tells when its life began"
    assert not shown.rotation_is_due(due - timedelta(seconds=1))
    assert shown.rotation_is_due(due)
    restarted = credentials(tmp_path, uniform=uniform)
    assert not restarted.rotation_is_due(due - timedelta(seconds=1))
    assert restarted.rotation_is_due(due)


def test_what_ends_sooner_than_was_said_is_rotated_sooner(tmp_path: Path) -> None:
    """As the key of which a rotation has begun, and whose answer was lost."""
    shown = credentials(tmp_path)
    shown.keep(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    assert not shown.rotation_is_due(NOON + 20 * DAY)
    shown.learn(NOON + 21 * DAY)
    assert shown.rotation_is_due(NOON + 20 * DAY)


def test_neither_a_token_nor_a_key_that_never_ends_is_rotated(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.learn(NOON)
    assert not shown.rotation_is_due(NOON + DAY)
    shown.keep(SecretStr("the-key"), None, NOON)
    assert not shown.rotation_is_due(NOON + 10_000 * DAY)


def test_a_rotation_that_fails_is_tried_again_ever_later_but_in_time(tmp_path: Path) -> None:
    shown = credentials(tmp_path, uniform=most)
    shown.keep(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    now = NOON + 80 * DAY
    assert shown.rotation_is_due(now)
    waits = [shown.put_off_rotation(now, 0.0) for _ in range(14)]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == MAX_RETRY_SECONDS
    assert not shown.rotation_is_due(now)
    assert shown.rotation_is_due(now + timedelta(seconds=MAX_RETRY_SECONDS))
    assert shown.put_off_rotation(now, 5000.0) == 5000.0, "what the registry asks for"
    assert shown.put_off_rotation(NOON + 90 * DAY - timedelta(minutes=1), 0.0) == pytest.approx(6)
    assert shown.put_off_rotation(NOON + 91 * DAY, 0.0) == 1


def test_a_key_that_cannot_be_kept_is_not_shown(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.keep(SecretStr("the-key"), None)
    (tmp_path / f".{NODE_KEY}.draft").mkdir()
    with pytest.raises(StateError):
        shown.keep(SecretStr("another"), None)
    assert shown.bearer == "the-key"
    assert credentials(tmp_path).bearer == "the-key"


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
    registry: LiveServer, directory: Path, token: MadeToken | None = None
) -> AsyncIterator[Run]:
    """An agent, from its start to its end."""
    url = registry.graphql_url
    shown = credentials(directory, token.text if token else None)
    machine = observe()
    boot_id = identity.begin_boot(directory, machine.hostname, machine.local_ip)
    async with aclosing(
        KeyedConnection(shown, lambda bearer: Connection(http_transport(url, bearer)))
    ) as connection:
        settings = load_settings({"registry_url": url})
        schedule = Schedule(Clock())
        yield Run(connection, shown, schedule, directory, settings, boot_id, patience_seconds=0.0)


async def key_in(directory: Path, keys: Database) -> Token:
    kept = read_key(directory)
    assert kept is not None
    async with keys.read() as session:
        found = await tokens.known(session, presented(kept.key.get_secret_value()))
    assert found is not None, "it stands"
    return found


async def standing_keys(keys: Database) -> int:
    [(count,)] = await rows(
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
        await run.beat()
    await revoke(keys, enrolment.token.public_id)
    for token in (enrolment, None):
        async with running(registry, tmp_path, token) as run:
            await run.register()
            await run.beat()
    assert (await key_in(tmp_path, keys)).id == key.id


async def test_an_agent_that_died_before_it_could_keep_its_key_gets_another(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys, uses=1)
    machine = observe()
    boot_id = identity.begin_boot(tmp_path, machine.hostname, machine.local_ip)
    said = registration_input(load_settings({}), machine, boot_id)
    transport = http_transport(registry.graphql_url, enrolment.text)
    async with Connection(transport) as connection:
        await connection.ask(documents.REGISTER_NODE, {"input": said}, RegisterNodeData)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.beat()
    assert await standing_keys(keys) == 1


async def test_an_agent_that_died_between_its_key_and_its_id_is_the_same_node(
    registry: LiveServer, keys: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolment = await create_enrolment(keys, uses=1)
    with monkeypatch.context() as killed:
        killed.setattr(identity, "accept_boot", lambda *_: sys.exit(9))
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
        now = (await run.beat()).received_at
        first = await key_in(tmp_path, keys)
        for early in (now, now + 50 * DAY):
            await rotate_when_due(run.connection, run.credentials, early)
            assert (await key_in(tmp_path, keys)).id == first.id
        await rotate_when_due(run.connection, run.credentials, now + 60 * DAY)
        second = await key_in(tmp_path, keys)
        assert second.replaces == first.id
        await revoke(keys, first.public_id)
        await run.beat()


async def test_an_agent_that_died_before_it_could_keep_a_rotated_key_is_not_locked_out(
    start_server: StartServer, tmp_path: Path
) -> None:
    """It was killed between the answer and the write; in the overlap it finds that out."""
    options = {"key_check_seconds": 0.05, "node_key_overlap_seconds": 86400}
    async with start_server(auth="required", **options) as registry:
        keys = registry.services.database
        async with running(registry, tmp_path, await create_enrolment(keys)) as run:
            await run.register()
            now = (await run.beat()).received_at
            await rotate_when_due(run.connection, run.credentials, now)
            await run.connection.ask(documents.ROTATE_NODE_KEY, {}, RotateNodeKeyData)
        old = await key_in(tmp_path, keys)
        async with running(registry, tmp_path) as run:
            await run.register()
            await rotate_when_due(run.connection, run.credentials, now + 20 * HOUR)
        new = await key_in(tmp_path, keys)
        assert new.replaces == old.id
        await age_keys(keys, DAY)
        async with running(registry, tmp_path) as run:
            await run.register()
            await run.beat()
        assert await standing_keys(keys) == 1


@asynccontextmanager
async def beating(run: Run) -> AsyncIterator[None]:
    """Meanwhile it sends its heartbeats."""
    run.patience_seconds = None
    task = asyncio.create_task(run.keep_beating())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard(keys: Database) -> int:
    [(count,)] = await rows(keys, "SELECT count(*) FROM heartbeat_log")
    assert isinstance(count, int)
    return count


async def heard_more(keys: Database) -> None:
    before = await heard(keys)
    async with asyncio.timeout(20):
        while await heard(keys) == before:
            await asyncio.sleep(0.02)


async def test_an_agent_that_runs_for_long_outlives_its_key(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    async with running(registry, tmp_path, await create_enrolment(keys)) as run:
        await run.register()
    kept = read_key(tmp_path)
    assert kept is not None
    keep_key(tmp_path, kept.model_copy(update={"obtained_at": NOON - 1000 * DAY}))
    first = await key_in(tmp_path, keys)
    async with running(registry, tmp_path) as run, beating(run):
        second = await _key_other_than(first.public_id, tmp_path)
        await revoke(keys, first.public_id)
        await heard_more(keys)
        assert await _key_other_than(first.public_id, tmp_path) == second, "which is young"


async def test_a_key_that_was_revoked_is_followed_by_a_new_one_while_heartbeats_go_on(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run, beating(run):
        first = await _key_other_than(None, tmp_path)
        await revoke(keys, first)
        await _key_other_than(first, tmp_path)
        await heard_more(keys)


async def _key_other_than(former: str | None, directory: Path) -> str:
    """Its public id."""
    async with asyncio.timeout(20):
        while True:
            if kept := read_key(directory):
                public_id = presented(kept.key.get_secret_value()).public_id
                if public_id != former:
                    return public_id
            await asyncio.sleep(0.02)


async def test_a_key_that_was_revoked_is_refused_where_there_is_no_enrolment_key(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
    await revoke(keys, (await key_in(tmp_path, keys)).public_id)
    async with running(registry, tmp_path) as run:
        with pytest.raises(RefusedError) as refused:
            await run.register()
        assert refused.value.code == UNAUTHENTICATED
    assert read_key(tmp_path) is not None, "it may be good again, as when a backup is put back"


async def test_a_node_whose_key_stands_is_not_enrolled_by_who_has_lost_it(
    registry: LiveServer, keys: Database, tmp_path: Path
) -> None:
    enrolment = await create_enrolment(keys)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        await run.beat()
        node_id = run.node_id
    (tmp_path / NODE_KEY).unlink()
    async with running(registry, tmp_path, enrolment) as run:
        with pytest.raises(RefusedError, match="has a key already"):
            await run.register()
    assert node_id is not None
    await revoke(keys, node_id)
    async with running(registry, tmp_path, enrolment) as run:
        await run.register()
        assert run.node_id == node_id


def registered_with_key(expires_at: str) -> bytes:
    said = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0}
    return reply({"data": {"registerNode": {**said, "key": "the-key", "keyExpiresAt": expires_at}}})


@pytest.mark.parametrize(
    "answer", [None, HANG, refusal("UNAVAILABLE"), refusal("FORBIDDEN"), reply({"data": None})]
)
async def test_a_rotation_that_fails_costs_no_heartbeat(tmp_path: Path, answer: object) -> None:
    due = registered_with_key("2026-01-01T00:00:00+00:00")
    async with remote(due, recorded(), answer, recorded(), recorded(), HANG) as end:
        run = new_run(end, tmp_path, Time())
        run.patience_seconds = 0.0
        async with aclosing(run.connection):
            with capture_logs() as logs, pytest.raises(RegistryAwayError):
                await run.keep_beating()
        sequences = [sent["sequence"] for sent in end.inputs("recordHeartbeat")]
    assert sequences[:3] == [1, 2, 3]
    assert [log["event"] for log in logs].count("key.not_rotated") == 1
    assert "the-key" not in str(logs)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", 7])
async def test_a_key_that_no_header_could_carry_is_not_believed(tmp_path: Path, key: Any) -> None:
    said = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0, "key": key}
    async with remote(reply({"data": {"registerNode": said}})) as end:
        run = new_run(end, tmp_path, Time(), patience=0.0)
        async with aclosing(run.connection):
            with pytest.raises(RegistryAwayError, match="not of the schema") as failure:
                await run.register()
    assert "two words" not in str(failure.value)
    assert read_key(tmp_path) is None


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
    secret = json.loads((tmp_path / NODE_KEY).read_text())["key"]
    assert secret.startswith("nrk_")
    for text in (told, shown):
        assert secret[14:] not in text
        assert enrolment.text[14:] not in text
