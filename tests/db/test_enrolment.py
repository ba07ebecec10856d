"""Enrolment: node tokens, the uses of enrolment tokens, and protection from takeovers."""

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
from tests.support.tokens import (
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


async def count_uses_left(database: Database, enrolment_token: IssuedToken) -> int:
    [(uses,)] = await fetch_rows(
        database, "SELECT uses_left FROM tokens WHERE id = :id", id=enrolment_token.token.id
    )
    assert isinstance(uses, int)
    return uses


async def deregister(database: Database, node_id: str) -> None:
    async with database.write() as session:
        await nodes.deregister(session, node_id, note=None, caller=ADMIN)


async def test_enrolled_node_gets_a_token_for_itself_only(database: Database) -> None:
    enrolment_token = await create_enrolment(database, token_lifetime=10 * DAY)
    node, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    assert node.node_id == "gpu-1"
    stored = await find_token(database, node_token.text)
    assert stored is not None
    assert tokens.to_identity(stored) == Identity(
        "node/gpu-1", Role.AGENT, frozenset({"gpu-1"}), node_token.token.id
    )
    assert stored.expires_at == stored.created_at + 10 * DAY
    assert await count_uses_left(database, enrolment_token) == 2


async def test_node_without_an_id_gets_a_token_for_its_derived_id(
    database: Database,
) -> None:
    enrolment_token = await create_enrolment(database)
    node, node_token = await enrol(
        database, enrolment_token.token, make_registration(None, hostname="alpha")
    )
    assert node_token.token.nodes == [node.node_id] == ["alpha"]


async def test_node_token_lasts_90_days_by_default(database: Database) -> None:
    enrolment_token = await create_enrolment(database, valid_for=HOUR)
    assert enrolment_token.token.expires_at == enrolment_token.token.created_at + HOUR
    _, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    assert node_token.token.expires_at == node_token.token.created_at + 90 * DAY


async def test_enrolment_token_admits_as_many_nodes_as_it_has_uses(database: Database) -> None:
    enrolment_token = await create_enrolment(database, uses=1)
    await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    with pytest.raises(Forbidden, match="no use left"):
        await enrol(database, enrolment_token.token, make_registration("gpu-2", "boot-2"))
    assert await fetch_rows(database, "SELECT 1 FROM nodes WHERE node_id = 'gpu-2'") == []
    assert await count_uses_left(database, enrolment_token) == 0


async def try_to_enrol(
    database: Database, enrolment_token: IssuedToken, node_id: str, boot_id: str
) -> IssuedToken | None:
    try:
        return (await enrol(database, enrolment_token.token, make_registration(node_id, boot_id)))[
            1
        ]
    except (Forbidden, NodeIdTaken):
        return None


@given(uses=st.integers(1, 6), claims=st.lists(st.integers(0, 4), min_size=1, max_size=9))
@limit_examples(15)
async def test_concurrent_enrolments_take_one_use_each_and_leave_one_token_per_node(
    database: Database, uses: int, claims: Sequence[int]
) -> None:
    """Each claim is a separate run of an agent; equal numbers claim the same node."""
    async with database.write() as session:
        for table in ("status_changes", "nodes", "tokens"):
            await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608  # a name of ours
        await session.execute(text("UPDATE registry_state SET revision = 0"))
    enrolment_token = await create_enrolment(database, uses=uses)
    outcomes = await asyncio.gather(
        *(
            try_to_enrol(database, enrolment_token, f"gpu-{n}", f"boot-{i}")
            for i, n in enumerate(claims)
        )
    )
    node_tokens = [outcome for outcome in outcomes if outcome]
    assert len(node_tokens) == min(uses, len(set(claims)))
    assert await list_valid_tokens(database, *node_tokens) == node_tokens
    assert len({tuple(issued.token.nodes) for issued in node_tokens}) == len(node_tokens)
    assert await count_uses_left(database, enrolment_token) == uses - len(node_tokens)
    assert await fetch_rows(database, "SELECT count(*) FROM nodes") == [(len(node_tokens),)]


@pytest.mark.parametrize(
    ("allowed", "registration", "field"),
    [
        ({"node_role": NodeRole.PRODUCTION}, {}, "input.role"),
        ({"node_type": NodeType.ROUTER}, {}, "input.type"),
        ({"labels": ["gpu"]}, {"labels": ["gpu", "secret"]}, "input.labels"),
        ({"labels": []}, {"labels": ["gpu"]}, "input.labels"),
    ],
)
async def test_node_outside_the_terms_of_the_token_is_rejected_and_takes_no_use(
    database: Database, allowed: dict[str, Any], registration: dict[str, Any], field: str
) -> None:
    enrolment_token = await create_enrolment(database, **allowed)
    with pytest.raises(Forbidden) as rejection:
        await enrol(database, enrolment_token.token, make_registration("gpu-1", **registration))
    assert rejection.value.details == {"field": field}
    assert await fetch_rows(database, "SELECT 1 FROM nodes WHERE node_id = 'gpu-1'") == []
    assert await count_uses_left(database, enrolment_token) == 3


async def test_node_of_the_allowed_role_type_and_labels_is_enrolled(database: Database) -> None:
    enrolment_token = await create_enrolment(
        database, node_role=NodeRole.DEVELOPMENT, node_type=NodeType.WORKER, labels=["gpu", "rack"]
    )
    _, node_token = await enrol(
        database, enrolment_token.token, make_registration("gpu-1", labels=["gpu"])
    )
    assert await list_valid_tokens(database, node_token) == [node_token]


async def test_labels_of_a_silent_node_count_for_the_terms(database: Database) -> None:
    await register(database, "gpu-1", labels=["production-traffic"])
    await age(database, EXPIRED)
    enrolment_token = await create_enrolment(database, labels=["gpu"])
    with pytest.raises(Forbidden):
        await enrol(database, enrolment_token.token, make_registration("gpu-1", "boot-2"))


async def test_expired_or_revoked_enrolment_token_enrols_no_node(database: Database) -> None:
    expired, revoked = await create_enrolment(database), await create_enrolment(database)
    await revoke_token(database, revoked.token.public_id)
    await age_tokens(database, DAY)
    for enrolment_token in (expired, revoked):
        with pytest.raises(Forbidden):
            await enrol(database, enrolment_token.token, make_registration("gpu-1"))


async def test_node_token_enrols_no_node(database: Database) -> None:
    agent_token = await create_token(database, Role.AGENT, nodes=["gpu-1"])
    with pytest.raises(Forbidden):
        await enrol(database, agent_token.token, make_registration("gpu-1"))


async def test_silent_node_with_a_token_is_not_taken_over(
    database: Database,
) -> None:
    enrolment_token = await create_enrolment(database)
    _, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    await use_tokens(database, node_token)
    await age(database, EXPIRED, "gpu-1")
    holder = await get_node(database, "gpu-1")
    with pytest.raises(Forbidden) as rejection:
        await enrol(
            database, enrolment_token.token, make_registration("gpu-1", "boot-2", labels=["stolen"])
        )
    assert rejection.value.details == {"nodeId": "gpu-1"}
    assert await get_node(database, "gpu-1") == holder
    assert await list_valid_tokens(database, node_token) == [node_token]
    assert await count_uses_left(database, enrolment_token) == 2


async def test_node_with_a_shared_token_is_not_enrolled(database: Database) -> None:
    await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"])
    enrolment_token = await create_enrolment(database)
    with pytest.raises(Forbidden):
        await enrol(database, enrolment_token.token, make_registration("gpu-2"))


async def test_run_whose_token_was_used_is_not_enrolled_again(
    database: Database,
) -> None:
    enrolment_token = await create_enrolment(database)
    _, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    await use_tokens(database, node_token)
    with pytest.raises(Forbidden):
        await enrol(database, enrolment_token.token, make_registration("gpu-1"))


async def test_live_node_without_a_token_is_not_taken_over(
    database: Database,
) -> None:
    await register(database, "gpu-1", "boot-1")
    await beat(database, "gpu-1")
    enrolment_token = await create_enrolment(database)
    with pytest.raises(NodeIdTaken):
        await enrol(database, enrolment_token.token, make_registration("gpu-1", "boot-2"))


async def test_silent_node_without_a_token_is_enrolled(database: Database) -> None:
    enrolment_token = await create_enrolment(database)
    node, node_token = await enrol(
        database, enrolment_token.token, make_registration("node-1-hetzner-gex44")
    )
    assert node_token.token.nodes == [node.node_id]


async def test_restarted_agent_enrols_without_waiting_for_its_lease(
    database: Database,
) -> None:
    """Authentication was just turned on: the node sent heartbeats without a token before."""
    host = {"hostname": "alpha", "local_ip": "10.0.0.7"}
    await register(database, "gpu-1", "boot-1", **host)
    enrolment_token = await create_enrolment(database)
    registration = make_registration("gpu-1", "boot-2", replaces_boot_id="boot-1", **host)
    _, node_token = await enrol(database, enrolment_token.token, registration)
    assert await list_valid_tokens(database, node_token) == [node_token]


async def test_enrolment_whose_response_was_lost_can_be_repeated(database: Database) -> None:
    enrolment_token = await create_enrolment(database, uses=1)
    node, lost = await enrol(
        database, enrolment_token.token, make_registration(None, hostname="alpha")
    )
    second, node_token = await enrol(
        database, enrolment_token.token, make_registration(None, hostname="alpha")
    )
    assert second.id == node.id
    assert await list_valid_tokens(database, lost, node_token) == [node_token]
    assert await count_uses_left(database, enrolment_token) == 0


async def test_enrolment_is_not_repeated_by_another_run_or_enrolment_token(
    database: Database,
) -> None:
    enrolment_token, other = await create_enrolment(database), await create_enrolment(database)
    _, lost = await enrol(database, enrolment_token.token, make_registration("gpu-1", "boot-1"))
    with pytest.raises(Forbidden):
        await enrol(database, other.token, make_registration("gpu-1", "boot-1"))
    await age(database, EXPIRED, "gpu-1")
    with pytest.raises(Forbidden):
        await enrol(database, enrolment_token.token, make_registration("gpu-1", "boot-2"))
    assert await list_valid_tokens(database, lost) == [lost]


@pytest.mark.parametrize("ended", ["revoked", "expired"])
async def test_node_whose_token_ended_can_enrol_again(database: Database, ended: str) -> None:
    enrolment_token = await create_enrolment(database, valid_for=10 * DAY, token_lifetime=HOUR)
    _, first = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    await use_tokens(database, first)
    if ended == "revoked":
        await revoke_token(database, "gpu-1")
    else:
        await age_tokens(database, HOUR + timedelta(seconds=1))
    _, second = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    assert await list_valid_tokens(database, first, second) == [second]
    assert await count_uses_left(database, enrolment_token) == 1


async def test_deregistering_a_node_revokes_its_enrolled_tokens(
    database: Database,
) -> None:
    enrolment_token = await create_enrolment(database)
    _, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    rotated = await rotate_token(database, node_token.token)
    _, other = await enrol(database, enrolment_token.token, make_registration("gpu-2", "boot-2"))
    manual_token = await create_token(database, Role.AGENT, nodes=["gpu-1"])
    gateway_token = await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"])
    await deregister(database, "gpu-1")
    assert await list_valid_tokens(
        database, enrolment_token, node_token, rotated, other, manual_token, gateway_token
    ) == [
        enrolment_token,
        other,
        manual_token,
        gateway_token,
    ]


async def test_enrolment_is_in_the_audit_log_and_the_change_log(database: Database) -> None:
    enrolment_token = await create_enrolment(database, name="rack-7")
    node, node_token = await enrol(database, enrolment_token.token, make_registration("gpu-1"))
    entries = await fetch_rows(database, "SELECT actor, action, subject FROM audit_log ORDER BY id")
    assert entries == [
        ("root", "token.create", enrolment_token.token.public_id),
        ("token/rack-7", "node.register", "gpu-1"),
        ("token/rack-7", "token.create", node_token.token.public_id),
    ]
    assert await fetch_rows(
        database, "SELECT actor FROM status_changes WHERE node_id = :node", node=node.id
    ) == [("token/rack-7",)]
