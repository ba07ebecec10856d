"""The node's own token: how an agent keeps it, and when it rotates it."""

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
from tests.support.keyring import DAY
from tests.support.scripted_registry import (
    HANG,
    NODE,
    make_recorded,
    make_refusal,
    make_reply,
    make_runner,
    run_scripted_registry,
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
        credentials(tmp_path).save_node_token(SecretStr("the-key"), NOON)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / CREDENTIAL_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [CREDENTIAL_FILE]
    kept = read_node_token(tmp_path)
    assert kept is not None
    assert (kept.token.get_secret_value(), kept.expires_at) == ("the-key", NOON)


def test_the_key_is_not_shown_when_it_is_printed(tmp_path: Path) -> None:
    credentials(tmp_path).save_node_token(SecretStr("the-key"), None)
    assert "the-key" not in f"{read_node_token(tmp_path)!r} {read_node_token(tmp_path)}"


def test_the_key_goes_before_the_token_from_then_on(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    assert shown.bearer == "the-token"
    shown.save_node_token(SecretStr("the-key"), None)
    assert shown.bearer == "the-key"
    assert credentials(tmp_path).bearer == "the-key"
    assert credentials(tmp_path, None).bearer == "the-key"


def test_the_token_takes_the_place_of_a_key_until_it_is_tried_again(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.save_node_token(SecretStr("the-key"), None)
    assert shown.use_configured_token()
    assert shown.bearer == "the-token"
    assert not shown.use_configured_token()
    shown.use_node_token()
    assert shown.bearer == "the-key"


def test_without_a_choice_nothing_takes_the_place_of_what_is_shown(tmp_path: Path) -> None:
    assert not credentials(tmp_path).use_configured_token()
    credentials(tmp_path).save_node_token(SecretStr("the-key"), None)
    assert not credentials(tmp_path, None).use_configured_token()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "nrk_secret"}', "\udcff"])
def test_a_damaged_key_is_not_taken_for_a_missing_one(tmp_path: Path, text: str) -> None:
    (tmp_path / CREDENTIAL_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StateError, match="damaged") as failure:
        credentials(tmp_path)
    assert "nrk_secret" not in str(failure.value)


@pytest.mark.parametrize(("uniform", "part"), [(least, ROTATE_FROM), (most, ROTATE_BY)])
def test_a_key_is_due_for_rotation_after_two_thirds_of_its_life_about(
    tmp_path: Path, uniform: Any, part: float
) -> None:
    shown = credentials(tmp_path, uniform=uniform)
    shown.save_node_token(SecretStr("the-key"), NOON + 90 * DAY)
    due = NOON + part * 90 * DAY
    assert not shown.is_rotation_due(NOON), "the first heartbeat tells when its life began"
    assert not shown.is_rotation_due(due - timedelta(seconds=1))
    assert shown.is_rotation_due(due)
    restarted = credentials(tmp_path, uniform=uniform)
    assert not restarted.is_rotation_due(due - timedelta(seconds=1))
    assert restarted.is_rotation_due(due)


def test_what_ends_sooner_than_was_said_is_rotated_sooner(tmp_path: Path) -> None:
    """As the key of which a rotation has begun, and whose answer was lost."""
    shown = credentials(tmp_path)
    shown.save_node_token(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    assert not shown.is_rotation_due(NOON + 20 * DAY)
    shown.update_expiry(NOON + 21 * DAY)
    assert shown.is_rotation_due(NOON + 20 * DAY)


def test_neither_a_token_nor_a_key_that_never_ends_is_rotated(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.update_expiry(NOON)
    assert not shown.is_rotation_due(NOON + DAY)
    shown.save_node_token(SecretStr("the-key"), None, NOON)
    assert not shown.is_rotation_due(NOON + 10_000 * DAY)


def test_a_rotation_that_fails_is_tried_again_ever_later_but_in_time(tmp_path: Path) -> None:
    shown = credentials(tmp_path, uniform=most)
    shown.save_node_token(SecretStr("the-key"), NOON + 90 * DAY, NOON)
    now = NOON + 80 * DAY
    assert shown.is_rotation_due(now)
    waits = [shown.postpone_rotation(now, 0.0) for _ in range(14)]
    assert waits[:4] == [2, 4, 8, 16]
    assert max(waits) == MAX_RETRY_SECONDS
    assert not shown.is_rotation_due(now)
    assert shown.is_rotation_due(now + timedelta(seconds=MAX_RETRY_SECONDS))
    assert shown.postpone_rotation(now, 5000.0) == 5000.0, "what the registry asks for"
    assert shown.postpone_rotation(NOON + 90 * DAY - timedelta(minutes=1), 0.0) == pytest.approx(6)
    assert shown.postpone_rotation(NOON + 91 * DAY, 0.0) == 1


def test_a_key_that_cannot_be_kept_is_not_shown(tmp_path: Path) -> None:
    shown = credentials(tmp_path)
    shown.save_node_token(SecretStr("the-key"), None)
    (tmp_path / f".{CREDENTIAL_FILE}.draft").mkdir()
    with pytest.raises(StateError):
        shown.save_node_token(SecretStr("another"), None)
    assert shown.bearer == "the-key"
    assert credentials(tmp_path).bearer == "the-key"


def registered_with_key(expires_at: str) -> bytes:
    said = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0}
    return make_reply(
        {"data": {"registerNode": {**said, "key": "the-key", "keyExpiresAt": expires_at}}}
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        HANG,
        make_refusal("UNAVAILABLE"),
        make_refusal("FORBIDDEN"),
        make_reply({"data": None}),
    ],
)
async def test_a_rotation_that_fails_costs_no_heartbeat(tmp_path: Path, answer: object) -> None:
    due = registered_with_key("2026-01-01T00:00:00+00:00")
    async with run_scripted_registry(
        due, make_recorded(), answer, make_recorded(), make_recorded(), HANG
    ) as end:
        run = make_runner(end, tmp_path, Time())
        run.max_retry_seconds = 0.0
        async with aclosing(run.transport):
            with capture_logs() as logs, pytest.raises(RegistryUnavailableError):
                await run.run()
        sequences = [sent["sequence"] for sent in end.inputs("recordHeartbeat")]
    assert sequences[:3] == [1, 2, 3]
    assert [log["event"] for log in logs].count("token_rotation.failed") == 1
    assert "the-key" not in str(logs)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", 7])
async def test_a_key_that_no_header_could_carry_is_not_believed(tmp_path: Path, key: Any) -> None:
    said = {"node": NODE, "created": True, "nextHeartbeatInSeconds": 10.0, "key": key}
    async with run_scripted_registry(make_reply({"data": {"registerNode": said}})) as end:
        run = make_runner(end, tmp_path, Time(), patience=0.0)
        async with aclosing(run.transport):
            with pytest.raises(
                RegistryUnavailableError, match="does not match the schema"
            ) as failure:
                await run.register()
    assert "two words" not in str(failure.value)
    assert read_node_token(tmp_path) is None
