"""The node token: how an agent stores it, and when it rotates it."""

import os
import stat
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from agent.credentials import (
    CREDENTIAL_FILE,
    MAX_RETRY_SECONDS,
    ROTATE_BY,
    ROTATE_FROM,
    Credentials,
    read_node_token,
)
from agent.errors import RegistryUnavailableError
from agent.identity import StateError
from tests.support.fake_time import Time
from tests.support.scripted_registry import (
    HANG,
    NODE,
    make_heartbeat_reply,
    make_rejection,
    make_reply,
    make_runner,
    run_scripted_registry,
)
from tests.support.tokens import DAY

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def draw_least(low: float, _high: float) -> float:
    return low


def draw_most(_low: float, high: float) -> float:
    return high


def make_credentials(
    directory: Path, configured: str | None = "the-token", uniform: Any = draw_least
) -> Credentials:
    return Credentials(directory, SecretStr(configured) if configured else None, uniform)


def test_the_node_token_is_stored_readable_only_by_its_owner(tmp_path: Path) -> None:
    old_umask = os.umask(0)
    try:
        make_credentials(tmp_path).save_node_token(SecretStr("the-key"), NOON)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE((tmp_path / CREDENTIAL_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [CREDENTIAL_FILE]
    stored = read_node_token(tmp_path)
    assert stored is not None
    assert (stored.token.get_secret_value(), stored.expires_at) == ("the-key", NOON)


def test_the_node_token_is_not_shown_when_it_is_printed(tmp_path: Path) -> None:
    make_credentials(tmp_path).save_node_token(SecretStr("the-key"), None)
    assert "the-key" not in f"{read_node_token(tmp_path)!r} {read_node_token(tmp_path)}"


def test_a_stored_node_token_is_used_before_the_configured_token(tmp_path: Path) -> None:
    credentials = make_credentials(tmp_path)
    assert credentials.bearer == "the-token"
    credentials.save_node_token(SecretStr("the-key"), None)
    assert credentials.bearer == "the-key"
    assert make_credentials(tmp_path).bearer == "the-key"
    assert make_credentials(tmp_path, None).bearer == "the-key"


def test_the_configured_token_replaces_the_node_token_until_that_is_tried_again(
    tmp_path: Path,
) -> None:
    credentials = make_credentials(tmp_path)
    credentials.save_node_token(SecretStr("the-key"), None)
    assert credentials.use_configured_token()
    assert credentials.bearer == "the-token"
    assert not credentials.use_configured_token()
    credentials.use_node_token()
    assert credentials.bearer == "the-key"


def test_a_single_token_is_not_replaced(tmp_path: Path) -> None:
    assert not make_credentials(tmp_path).use_configured_token()
    make_credentials(tmp_path).save_node_token(SecretStr("the-key"), None)
    assert not make_credentials(tmp_path, None).use_configured_token()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "nrk_secret"}', "\udcff"])
def test_a_damaged_node_token_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / CREDENTIAL_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StateError, match="damaged") as failure:
        make_credentials(tmp_path)
    assert "nrk_secret" not in str(failure.value)


@pytest.mark.parametrize(("uniform", "part"), [(draw_least, ROTATE_FROM), (draw_most, ROTATE_BY)])
def test_rotation_is_due_after_about_two_thirds_of_the_lifetime(
    tmp_path: Path, uniform: Any, part: float
) -> None:
    credentials = make_credentials(tmp_path, uniform=uniform)
    credentials.save_node_token(SecretStr("the-key"), NOON + 90 * DAY)
    due = NOON + part * 90 * DAY
    assert not credentials.is_rotation_due(NOON), "the first heartbeat tells when its life began"
    assert not credentials.is_rotation_due(due - timedelta(seconds=1))
    assert credentials.is_rotation_due(due)
    restarted = make_credentials(tmp_path, uniform=uniform)
    assert not restarted.is_rotation_due(due - timedelta(seconds=1))
    assert restarted.is_rotation_due(due)


def test_rotation_is_due_earlier_when_the_token_expires_earlier(tmp_path: Path) -> None:
    """A token expires earlier when its rotation has begun but the answer was lost."""
    credentials = make_credentials(tmp_path)
    credentials.save_node_token(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    assert not credentials.is_rotation_due(NOON + 20 * DAY)
    credentials.update_expiry(NOON + 21 * DAY)
    assert credentials.is_rotation_due(NOON + 20 * DAY)


def test_neither_a_configured_token_nor_one_without_expiry_is_rotated(tmp_path: Path) -> None:
    credentials = make_credentials(tmp_path)
    credentials.update_expiry(NOON)
    assert not credentials.is_rotation_due(NOON + DAY)
    credentials.save_node_token(SecretStr("the-key"), None, NOON)
    assert not credentials.is_rotation_due(NOON + 10_000 * DAY)


def test_a_failed_rotation_is_retried_with_growing_delays_but_before_the_expiry(
    tmp_path: Path,
) -> None:
    credentials = make_credentials(tmp_path, uniform=draw_most)
    credentials.save_node_token(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    now = NOON + 80 * DAY
    assert credentials.is_rotation_due(now)
    waits = [credentials.postpone_rotation(now, 0.0) for _ in range(14)]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == MAX_RETRY_SECONDS
    assert not credentials.is_rotation_due(now)
    assert credentials.is_rotation_due(now + timedelta(seconds=MAX_RETRY_SECONDS))
    assert credentials.postpone_rotation(now, 5000.0) == 5000.0, "what the registry asks for"
    assert credentials.postpone_rotation(
        NOON + 90 * DAY - timedelta(minutes=1), 0.0
    ) == pytest.approx(6)
    assert credentials.postpone_rotation(NOON + 91 * DAY, 0.0) == 1


def test_a_token_that_cannot_be_stored_is_not_used(tmp_path: Path) -> None:
    credentials = make_credentials(tmp_path)
    credentials.save_node_token(SecretStr("the-key"), None)
    (tmp_path / f".{CREDENTIAL_FILE}.draft").mkdir()
    with pytest.raises(StateError):
        credentials.save_node_token(SecretStr("another"), None)
    assert credentials.bearer == "the-key"
    assert make_credentials(tmp_path).bearer == "the-key"


def make_registered_with_token(expires_at: str) -> bytes:
    payload = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0}
    return make_reply(
        {"data": {"registerNode": {**payload, "key": "the-key", "keyExpiresAt": expires_at}}}
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        HANG,
        make_rejection("UNAVAILABLE"),
        make_rejection("FORBIDDEN"),
        make_reply({"data": None}),
    ],
)
async def test_a_failed_rotation_delays_no_heartbeat(tmp_path: Path, answer: object) -> None:
    registered = make_registered_with_token("2026-01-01T00:00:00+00:00")
    async with run_scripted_registry(
        registered,
        make_heartbeat_reply(),
        answer,
        make_heartbeat_reply(),
        make_heartbeat_reply(),
        HANG,
    ) as registry:
        run = make_runner(registry, tmp_path, Time())
        run.max_retry_seconds = 0.0
        async with aclosing(run.transport):
            with capture_logs() as logs, pytest.raises(RegistryUnavailableError):
                await run.run()
        sequences = [heartbeat["sequence"] for heartbeat in registry.inputs("recordHeartbeat")]
    assert sequences[:3] == [1, 2, 3]
    assert [log["event"] for log in logs].count("token_rotation.failed") == 1
    assert "the-key" not in str(logs)


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "schlüssel", 7])
async def test_a_token_that_is_not_a_valid_header_value_is_rejected(
    tmp_path: Path, token: Any
) -> None:
    payload = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0, "key": token}
    async with run_scripted_registry(make_reply({"data": {"registerNode": payload}})) as registry:
        run = make_runner(registry, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            with pytest.raises(
                RegistryUnavailableError, match="does not match the schema"
            ) as failure:
                await run.register()
    assert "two words" not in str(failure.value)
    assert read_node_token(tmp_path) is None
