"""Enrolment: who gets a key of their own, how many do, and who is kept from taking over a node."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.access import tokens
from db.access.token_changes import IssuedToken
from db.core.database import Database
from db.core.enums import NodeRole, NodeType, Role
from db.core.errors import Forbidden, NodeIdTaken
from db.core.identity import Identity
from db.registry import nodes
from tests.support.fleet import (
    EXPIRED,
    age,
    beat,
    fetch_rows,
    get_node,
    limit_examples,
    make_registration,
    register,
)
from tests.support.keyring import (
    ADMIN,
    DAY,
    HOUR,
    age_tokens,
    create_enrolment,
    create_token,
    enrol,
    find_token,
    list_valid_tokens,
    revoke_token,
    rotate_token,
    use_tokens,
)


async def uses_left(database: Database, key: IssuedToken) -> int:
    [(left,)] = await fetch_rows(
        database, "SELECT uses_left FROM tokens WHERE id = :id", id=key.token.id
    )
    assert isinstance(left, int)
    return left


async def deregister(database: Database, node_id: str) -> None:
    async with database.write() as session:
        await nodes.deregister(session, node_id, note=None, caller=ADMIN)


async def test_an_enrolled_node_has_a_key_that_speaks_for_it_alone(database: Database) -> None:
    key = await create_enrolment(database, token_lifetime=10 * DAY)
    node, made = await enrol(database, key.token, make_registration("gpu-1"))
    assert node.node_id == "gpu-1"
    found = await find_token(database, made.text)
    assert found is not None
    assert tokens.to_identity(found) == Identity(
        "gpu-1", Role.AGENT, frozenset({"gpu-1"}), made.token.id
    )
    assert found.expires_at == found.created_at + 10 * DAY
    assert await uses_left(database, key) == 2


async def test_a_node_without_an_id_is_given_a_key_for_the_one_that_is_made_for_it(
    database: Database,
) -> None:
    key = await create_enrolment(database)
    node, made = await enrol(database, key.token, make_registration(None, hostname="alpha"))
    assert made.token.nodes == [node.node_id] == ["alpha"]


async def test_a_key_lasts_90_days_unless_told_otherwise(database: Database) -> None:
    key = await create_enrolment(database, valid_for=HOUR)
    assert key.token.expires_at == key.token.created_at + HOUR
    _, made = await enrol(database, key.token, make_registration("gpu-1"))
    assert made.token.expires_at == made.token.created_at + 90 * DAY


async def test_no_more_nodes_are_let_in_than_there_are_uses(database: Database) -> None:
    key = await create_enrolment(database, uses=1)
    await enrol(database, key.token, make_registration("gpu-1"))
    with pytest.raises(Forbidden, match="no use left"):
        await enrol(database, key.token, make_registration("gpu-2", "boot-2"))
    assert await fetch_rows(database, "SELECT 1 FROM nodes WHERE node_id = 'gpu-2'") == []
    assert await uses_left(database, key) == 0


async def attempt(
    database: Database, key: IssuedToken, node_id: str, boot_id: str
) -> IssuedToken | None:
    try:
        return (await enrol(database, key.token, make_registration(node_id, boot_id)))[1]
    except (Forbidden, NodeIdTaken):
        return None


@given(uses=st.integers(1, 6), claims=st.lists(st.integers(0, 4), min_size=1, max_size=9))
@limit_examples(15)
async def test_however_many_enrol_at_once_no_use_is_taken_twice_and_no_node_has_two_keys(
    database: Database, uses: int, claims: Sequence[int]
) -> None:
    """Each claim is another run of an agent; those of one number claim one node."""
    async with database.write() as session:
        for table in ("status_changes", "nodes", "tokens"):
            await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608  # a name of ours
        await session.execute(text("UPDATE registry_state SET revision = 0"))
    key = await create_enrolment(database, uses=uses)
    outcomes = await asyncio.gather(
        *(attempt(database, key, f"gpu-{n}", f"boot-{i}") for i, n in enumerate(claims))
    )
    made = [outcome for outcome in outcomes if outcome]
    assert len(made) == min(uses, len(set(claims)))
    assert await list_valid_tokens(database, *made) == made
    assert len({tuple(key.token.nodes) for key in made}) == len(made)
    assert await uses_left(database, key) == uses - len(made)
    assert await fetch_rows(database, "SELECT count(*) FROM nodes") == [(len(made),)]


@pytest.mark.parametrize(
    ("allowed", "said", "field"),
    [
        ({"node_role": NodeRole.PRODUCTION}, {}, "input.role"),
        ({"node_type": NodeType.ROUTER}, {}, "input.type"),
        ({"labels": ["gpu"]}, {"labels": ["gpu", "secret"]}, "input.labels"),
        ({"labels": []}, {"labels": ["gpu"]}, "input.labels"),
    ],
)
async def test_a_node_that_the_key_is_not_for_is_refused_and_takes_no_use(
    database: Database, allowed: dict[str, Any], said: dict[str, Any], field: str
) -> None:
    key = await create_enrolment(database, **allowed)
    with pytest.raises(Forbidden) as refusal:
        await enrol(database, key.token, make_registration("gpu-1", **said))
    assert refusal.value.details == {"field": field}
    assert await fetch_rows(database, "SELECT 1 FROM nodes WHERE node_id = 'gpu-1'") == []
    assert await uses_left(database, key) == 3


async def test_a_node_of_the_allowed_role_type_and_labels_is_let_in(database: Database) -> None:
    key = await create_enrolment(
        database, node_role=NodeRole.DEVELOPMENT, node_type=NodeType.WORKER, labels=["gpu", "rack"]
    )
    _, made = await enrol(database, key.token, make_registration("gpu-1", labels=["gpu"]))
    assert await list_valid_tokens(database, made) == [made]


async def test_labels_that_a_silent_node_has_kept_count_too(database: Database) -> None:
    await register(database, "gpu-1", labels=["production-traffic"])
    await age(database, EXPIRED)
    key = await create_enrolment(database, labels=["gpu"])
    with pytest.raises(Forbidden):
        await enrol(database, key.token, make_registration("gpu-1", "boot-2"))


async def test_an_enrolment_key_that_does_not_stand_lets_nobody_in(database: Database) -> None:
    expired, revoked = await create_enrolment(database), await create_enrolment(database)
    await revoke_token(database, revoked.token.public_id)
    await age_tokens(database, DAY)
    for key in (expired, revoked):
        with pytest.raises(Forbidden):
            await enrol(database, key.token, make_registration("gpu-1"))


async def test_a_nodes_own_key_enrols_nobody(database: Database) -> None:
    own = await create_token(database, Role.AGENT, nodes=["gpu-1"])
    with pytest.raises(Forbidden):
        await enrol(database, own.token, make_registration("gpu-1"))


async def test_a_node_that_has_a_key_is_not_taken_over_however_silent_it_is(
    database: Database,
) -> None:
    key = await create_enrolment(database)
    _, made = await enrol(database, key.token, make_registration("gpu-1"))
    await use_tokens(database, made)
    await age(database, EXPIRED, "gpu-1")
    holder = await get_node(database, "gpu-1")
    with pytest.raises(Forbidden) as refusal:
        await enrol(database, key.token, make_registration("gpu-1", "boot-2", labels=["stolen"]))
    assert refusal.value.details == {"nodeId": "gpu-1"}
    assert await get_node(database, "gpu-1") == holder
    assert await list_valid_tokens(database, made) == [made]
    assert await uses_left(database, key) == 2


async def test_not_even_one_whose_key_speaks_for_other_nodes_too(database: Database) -> None:
    await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"])
    key = await create_enrolment(database)
    with pytest.raises(Forbidden):
        await enrol(database, key.token, make_registration("gpu-2"))


async def test_not_even_by_the_run_that_holds_it_once_its_key_was_used(
    database: Database,
) -> None:
    key = await create_enrolment(database)
    _, made = await enrol(database, key.token, make_registration("gpu-1"))
    await use_tokens(database, made)
    with pytest.raises(Forbidden):
        await enrol(database, key.token, make_registration("gpu-1"))


async def test_a_node_that_is_heard_is_not_taken_over_though_it_has_no_key(
    database: Database,
) -> None:
    await register(database, "gpu-1", "boot-1")
    await beat(database, "gpu-1")
    key = await create_enrolment(database)
    with pytest.raises(NodeIdTaken):
        await enrol(database, key.token, make_registration("gpu-1", "boot-2"))


async def test_a_silent_node_without_a_key_is_let_in(database: Database) -> None:
    key = await create_enrolment(database)
    node, made = await enrol(database, key.token, make_registration("node-1-hetzner-gex44"))
    assert made.token.nodes == [node.node_id]


async def test_an_agent_that_started_anew_with_an_enrolment_key_need_not_fall_silent(
    database: Database,
) -> None:
    """As when authentication is turned on: it was heard without a key until now."""
    host = {"hostname": "alpha", "local_ip": "10.0.0.7"}
    await register(database, "gpu-1", "boot-1", **host)
    key = await create_enrolment(database)
    again = make_registration("gpu-1", "boot-2", replaces_boot_id="boot-1", **host)
    _, made = await enrol(database, key.token, again)
    assert await list_valid_tokens(database, made) == [made]


async def test_an_enrolment_whose_answer_was_lost_can_be_made_again(database: Database) -> None:
    key = await create_enrolment(database, uses=1)
    node, lost = await enrol(database, key.token, make_registration(None, hostname="alpha"))
    again, made = await enrol(database, key.token, make_registration(None, hostname="alpha"))
    assert again.id == node.id
    assert await list_valid_tokens(database, lost, made) == [made]
    assert await uses_left(database, key) == 0


async def test_but_not_by_another_run_or_another_enrolment_key(database: Database) -> None:
    key, other = await create_enrolment(database), await create_enrolment(database)
    _, lost = await enrol(database, key.token, make_registration("gpu-1", "boot-1"))
    with pytest.raises(Forbidden):
        await enrol(database, other.token, make_registration("gpu-1", "boot-1"))
    await age(database, EXPIRED, "gpu-1")
    with pytest.raises(Forbidden):
        await enrol(database, key.token, make_registration("gpu-1", "boot-2"))
    assert await list_valid_tokens(database, lost) == [lost]


@pytest.mark.parametrize("ended", ["revoked", "expired"])
async def test_a_node_whose_key_ended_enrols_anew(database: Database, ended: str) -> None:
    key = await create_enrolment(database, valid_for=10 * DAY, token_lifetime=HOUR)
    _, first = await enrol(database, key.token, make_registration("gpu-1"))
    await use_tokens(database, first)
    if ended == "revoked":
        await revoke_token(database, "gpu-1")
    else:
        await age_tokens(database, HOUR + timedelta(seconds=1))
    _, second = await enrol(database, key.token, make_registration("gpu-1"))
    assert await list_valid_tokens(database, first, second) == [second]
    assert await uses_left(database, key) == 1


async def test_deregistering_a_node_ends_the_keys_that_enrolment_made_for_it(
    database: Database,
) -> None:
    key = await create_enrolment(database)
    _, made = await enrol(database, key.token, make_registration("gpu-1"))
    rotated = await rotate_token(database, made.token)
    _, other = await enrol(database, key.token, make_registration("gpu-2", "boot-2"))
    by_hand = await create_token(database, Role.AGENT, nodes=["gpu-1"])
    gateway = await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"])
    await deregister(database, "gpu-1")
    assert await list_valid_tokens(database, key, made, rotated, other, by_hand, gateway) == [
        key,
        other,
        by_hand,
        gateway,
    ]


async def test_an_enrolment_is_in_the_audit_trail_and_the_change_log(database: Database) -> None:
    key = await create_enrolment(database, name="rack-7")
    node, made = await enrol(database, key.token, make_registration("gpu-1"))
    audited = await fetch_rows(database, "SELECT actor, action, subject FROM audit_log ORDER BY id")
    assert audited == [
        ("root", "token.create", key.token.public_id),
        ("rack-7", "node.register", "gpu-1"),
        ("rack-7", "token.create", made.token.public_id),
    ]
    assert await fetch_rows(
        database, "SELECT actor FROM status_changes WHERE node_id = :node", node=node.id
    ) == [("rack-7",)]
