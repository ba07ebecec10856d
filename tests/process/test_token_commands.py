"""The commands `node-registry token …`."""

from datetime import timedelta

import pytest
from sqlalchemy import URL

from db.access import tokens
from db.core.database import Database
from db.core.enums import NodeRole, NodeType, Role
from db.core.identity import Identity
from tests.support.commands import make_environment, run
from tests.support.fleet import fetch_rows
from tests.support.tokens import age_tokens, create_token, find_token


async def run_token_command(url: URL, *arguments: str) -> tuple[int, str, str]:
    return await run("token", *arguments, **make_environment(url))


async def test_create_prints_only_the_new_token_on_standard_output(
    database: Database, database_url: URL
) -> None:
    status, output, errors = await run_token_command(
        database_url, "create", "--role", "agent", "--node", "gpu-1", "--node", "gpu-2",
        *("--name", "rack-1", "--expires", "90d"),
    )  # fmt: skip
    assert status == 0
    token = await find_token(database, output.removesuffix("\n"))
    assert token is not None
    assert tokens.to_identity(token) == Identity(
        "token/rack-1", Role.AGENT, frozenset({"gpu-1", "gpu-2"}), token.id
    )
    assert token.expires_at == token.created_at + timedelta(days=90)
    assert token.created_by.startswith("system/cli/")
    assert token.public_id in errors
    assert output.strip() not in errors


async def test_a_token_does_not_expire_by_default(database: Database, database_url: URL) -> None:
    _, output, _ = await run_token_command(database_url, "create", "--role", "viewer")
    token = await find_token(database, output.strip())
    assert token is not None
    assert (token.role, token.expires_at) == (Role.VIEWER, None)


async def test_enrol_creates_a_token_with_the_nodes_that_it_admits(
    database: Database, database_url: URL
) -> None:
    status, output, _ = await run_token_command(
        database_url, "enrol", "--uses", "40", "--expires", "12h", "--node-role", "production",
        *("--node-type", "WORKER", "--label", "gpu", "--label", "rack", "--key-expires", "30d"),
    )  # fmt: skip
    assert status == 0
    token = await find_token(database, output.strip())
    assert token is not None
    assert (token.role, token.uses_left) == (Role.ENROLMENT, 40)
    assert (token.node_role, token.node_type) == (NodeRole.PRODUCTION, NodeType.WORKER)
    assert token.labels == ["gpu", "rack"]
    assert token.lifetime == timedelta(days=30)
    assert token.expires_at == token.created_at + timedelta(hours=12)


async def test_list_shows_tokens_without_their_secrets(
    database: Database, database_url: URL
) -> None:
    valid = await create_token(database, Role.AGENT, name="rack-1", nodes=["gpu-1"])
    expired = await create_token(database, lifetime=timedelta(seconds=1))
    await age_tokens(database, timedelta(seconds=2))
    status, output, _ = await run_token_command(database_url, "list")
    assert status == 0
    headings, line = output.splitlines()
    assert headings.split()[:4] == ["ID", "NAME", "ROLE", "FOR"]
    assert line.split()[:4] == [valid.token.public_id, "rack-1", "agent", "gpu-1"]
    _, full_list, _ = await run_token_command(database_url, "list", "--all")
    assert expired.token.public_id in full_list
    for created in (valid, expired):
        assert created.text[14:46] not in full_list


async def test_a_token_is_rotated_with_an_overlap_and_revoked(
    database: Database, database_url: URL
) -> None:
    old = await create_token(database, name="grafana")
    status, output, _ = await run_token_command(
        database_url, "rotate", old.token.public_id, "--overlap", "30m"
    )
    assert status == 0
    new = await find_token(database, output.strip())
    assert new is not None
    assert new.name == "grafana"
    [(lifetime,)] = await fetch_rows(
        database, "SELECT expires_at - now() FROM tokens WHERE id = :id", id=old.token.id
    )
    assert timedelta(minutes=29) < lifetime <= timedelta(minutes=30)
    status, output, errors = await run_token_command(database_url, "revoke", "grafana")
    assert (status, output) == (0, "")
    assert old.token.public_id in errors
    assert new.public_id in errors
    async with database.read() as session:
        token_ids = {old.token.id, new.id}
        assert await tokens.find_ended_tokens(session, list(token_ids)) == token_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--role", "viewer", "--node", "gpu-1"], "is for agents only"),
        (["create", "--role", "agent"], "is needed for an agent"),
        (["create", "--role", "agent", "--node", "no id"], "--node: must be"),
        (["create", "--role", "viewer", "--name", " x"], "--name: must be"),
        (["create", "--role", "viewer", "--expires", "90"], "not a duration"),
        (["create", "--role", "viewer", "--expires", "9999d"], "at most 3650d"),
        (["enrol", "--label", "no label"], "--label[0]: must be"),
        (["revoke", "nosuchkey0"], "no token 'nosuchkey0' is valid"),
    ],
)
async def test_invalid_arguments_are_reported_in_one_line_and_change_nothing(
    database: Database, database_url: URL, arguments: list[str], message: str
) -> None:
    status, output, errors = await run_token_command(database_url, *arguments)
    assert status in {1, 2}
    assert output == ""
    assert message in errors.splitlines()[-1]
    assert await fetch_rows(database, "SELECT * FROM tokens") == []
