"""The commands `node-registry token …`, run as an operator runs them."""

from datetime import timedelta

import pytest
from sqlalchemy import URL

from db.access import tokens
from db.core.database import Database
from db.core.enums import NodeRole, NodeType, Role
from db.core.identity import Identity
from tests.support.commands import make_environment, run
from tests.support.fleet import fetch_rows
from tests.support.keyring import age_tokens, create_token, find_token


async def token(url: URL, *arguments: str) -> tuple[int, str, str]:
    return await run("token", *arguments, **make_environment(url))


async def test_a_new_key_is_all_that_is_on_standard_output(
    database: Database, database_url: URL
) -> None:
    status, output, told = await token(
        database_url, "create", "--role", "agent", "--node", "gpu-1", "--node", "gpu-2",
        *("--name", "rack-1", "--expires", "90d"),
    )  # fmt: skip
    assert status == 0
    key = await find_token(database, output.removesuffix("\n"))
    assert key is not None
    assert tokens.to_identity(key) == Identity(
        "rack-1", Role.AGENT, frozenset({"gpu-1", "gpu-2"}), key.id
    )
    assert key.expires_at == key.created_at + timedelta(days=90)
    assert key.created_by.endswith(" at the command line")
    assert key.public_id in told
    assert output.strip() not in told


async def test_a_key_stands_for_ever_unless_it_is_told_to_expire(
    database: Database, database_url: URL
) -> None:
    _, output, _ = await token(database_url, "create", "--role", "viewer")
    key = await find_token(database, output.strip())
    assert key is not None
    assert (key.role, key.expires_at) == (Role.VIEWER, None)


async def test_an_enrolment_key_says_whom_it_lets_in(database: Database, database_url: URL) -> None:
    status, output, _ = await token(
        database_url, "enrol", "--uses", "40", "--expires", "12h", "--node-role", "production",
        *("--node-type", "WORKER", "--label", "gpu", "--label", "rack", "--key-expires", "30d"),
    )  # fmt: skip
    assert status == 0
    key = await find_token(database, output.strip())
    assert key is not None
    assert (key.role, key.uses_left) == (Role.ENROLMENT, 40)
    assert (key.node_role, key.node_type) == (NodeRole.PRODUCTION, NodeType.WORKER)
    assert key.labels == ["gpu", "rack"]
    assert key.lifetime == timedelta(days=30)
    assert key.expires_at == key.created_at + timedelta(hours=12)


async def test_the_list_shows_keys_without_their_secrets(
    database: Database, database_url: URL
) -> None:
    made = await create_token(database, Role.AGENT, name="rack-1", nodes=["gpu-1"])
    dead = await create_token(database, lifetime=timedelta(seconds=1))
    await age_tokens(database, timedelta(seconds=2))
    status, output, _ = await token(database_url, "list")
    assert status == 0
    headings, line = output.splitlines()
    assert headings.split()[:4] == ["ID", "NAME", "ROLE", "FOR"]
    assert line.split()[:4] == [made.token.public_id, "rack-1", "agent", "gpu-1"]
    _, everything, _ = await token(database_url, "list", "--all")
    assert dead.token.public_id in everything
    for key in (made, dead):
        assert key.text[14:46] not in everything


async def test_a_key_is_rotated_with_an_overlap_and_revoked(
    database: Database, database_url: URL
) -> None:
    old = await create_token(database, name="grafana")
    status, output, _ = await token(database_url, "rotate", old.token.public_id, "--overlap", "30m")
    assert status == 0
    new = await find_token(database, output.strip())
    assert new is not None
    assert new.name == "grafana"
    [(left,)] = await fetch_rows(
        database, "SELECT expires_at - now() FROM tokens WHERE id = :id", id=old.token.id
    )
    assert timedelta(minutes=29) < left <= timedelta(minutes=30)
    status, output, told = await token(database_url, "revoke", "grafana")
    assert (status, output) == (0, "")
    assert old.token.public_id in told
    assert new.public_id in told
    async with database.read() as session:
        both = {old.token.id, new.id}
        assert await tokens.find_ended_tokens(session, list(both)) == both


@pytest.mark.parametrize(
    ("arguments", "problem"),
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
async def test_what_is_wrong_is_said_in_one_line_and_changes_nothing(
    database: Database, database_url: URL, arguments: list[str], problem: str
) -> None:
    status, output, told = await token(database_url, *arguments)
    assert status in {1, 2}
    assert output == ""
    assert problem in told.splitlines()[-1]
    assert await fetch_rows(database, "SELECT * FROM tokens") == []
