"""How runs of agents take hold of node ids, and lose them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from db.core.database import Database
from db.core.enums import NodeRole, NodeStatus, NodeType, ProfileType, StatusReason
from db.core.errors import NodeIdTaken, StaleBoot
from db.core.tables import Node
from db.registry import history, nodes, profiles, registration
from db.registry.node_filter import NodeFilter
from db.registry.profiles import ProfileContent
from tests.support.fleet import (
    AGENT,
    EXPIRED,
    OPERATOR,
    OVERDUE,
    RULES,
    age,
    beat,
    fetch_rows,
    get_node,
    list_changes,
    make_registration,
    make_report,
    record,
    register,
    run_sweep,
)

HOST = {"hostname": "alpha.example", "local_ip": "10.0.0.7"}


async def test_a_new_node_is_online_at_once_and_logged(database: Database) -> None:
    node, created = await register(
        database, "node-3", name="Third", labels=["gpu"], ip_address="2001:db8::1", **HOST
    )
    assert created
    assert (node.status, node.status_reason) == (NodeStatus.ONLINE, StatusReason.REGISTERED)
    assert (node.node_name, node.labels, node.ip_address) == ("Third", ["gpu"], "2001:db8::1")
    assert RULES.interval <= node.heartbeat_interval_seconds <= RULES.interval * 1.1
    assert node.last_heartbeat is None
    [change] = await list_changes(database, node.id)
    assert (change.revision, change.previous_status, change.status) == (3, None, NodeStatus.ONLINE)
    assert (change.reason, change.actor) == (StatusReason.REGISTERED, "agent")
    assert node.status_since == change.changed_at


async def test_what_a_registration_does_not_say_has_its_default(database: Database) -> None:
    node, _ = await register(database, "node-3")
    assert node.node_name == "node-3"
    assert (node.labels, node.capabilities, node.metadata_) == ([], {}, {})
    assert (node.ip_address, node.local_ip, node.hostname) == (None, None, None)


async def test_the_same_run_registers_again_without_a_change(database: Database) -> None:
    first, _ = await register(database, "node-3")
    await beat(database, "node-3", 7)
    again, created = await register(database, "node-3")
    assert not created
    assert (again.id, again.last_sequence) == (first.id, 7)
    assert again.heard_at is not None
    assert again.last_heartbeat is not None
    assert again.heard_at > again.last_heartbeat
    assert len(await list_changes(database, first.id)) == 1


async def test_what_is_absent_stays_and_what_is_given_replaces(database: Database) -> None:
    said: dict[str, Any] = {
        "name": "Third",
        "labels": ["a", "b"],
        "capabilities": {"x": 1},
        "metadata": {"y": 2},
    }
    await register(database, "node-3", ip_address="192.0.2.1", **said, **HOST)
    node, _ = await register(database, "node-3")
    assert (node.node_name, node.labels, node.capabilities) == ("Third", ["a", "b"], {"x": 1})
    assert (node.metadata_, node.ip_address, node.hostname) == (
        {"y": 2},
        "192.0.2.1",
        HOST["hostname"],
    )
    node, _ = await register(
        database,
        "node-3",
        role=NodeRole.PRODUCTION,
        type=NodeType.GATEWAY,
        labels=[],
        capabilities={"z": None},
        hostname="beta",
    )
    assert (node.node_role, node.node_type) == (NodeRole.PRODUCTION, NodeType.GATEWAY)
    assert (node.labels, node.capabilities, node.hostname) == ([], {"z": None}, "beta")
    assert (node.node_name, node.metadata_) == ("Third", {"y": 2})


async def test_another_run_is_refused_while_the_holder_is_heard(database: Database) -> None:
    holder, _ = await register(database, "node-3", ip_address="192.0.2.1", **HOST)
    before = await get_node(database, "node-3")
    with pytest.raises(NodeIdTaken) as refusal:
        await register(database, "node-3", "boot-2", hostname="beta", labels=["stolen"])
    facts = dict(refusal.value.details)
    seconds = facts.pop("retryAfterSeconds")
    assert isinstance(seconds, float)
    assert RULES.interval + RULES.grace - 2 < seconds <= RULES.interval * 1.1 + RULES.grace
    assert holder.boot_since is not None
    assert facts == {
        "nodeId": "node-3",
        "holderHostname": "alpha.example",
        "holderAddress": "192.0.2.1",
        "heldSince": holder.boot_since.isoformat(),
    }
    assert datetime.fromisoformat(str(facts["heldSince"])).utcoffset() == timedelta(0)
    assert refusal.value.retryable
    assert await get_node(database, "node-3") == before


async def test_a_silent_holder_is_replaced(database: Database) -> None:
    first, _ = await register(database, "node-3", **HOST)
    await beat(database, "node-3", 9)
    await age(database, OVERDUE, "node-3")
    second, created = await register(database, "node-3", "boot-2", hostname="beta")
    assert not created
    assert (second.id, second.boot_id, second.last_sequence) == (first.id, "boot-2", None)
    [stale] = await record(database, make_report("node-3", 10))
    assert isinstance(stale, StaleBoot)
    await beat(database, "node-3", 0, boot_id="boot-2")


async def test_a_holder_is_not_silent_before_its_interval_and_grace(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await age(database, node.heartbeat_interval_seconds + RULES.grace - 2, "node-3")
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2")
    await age(database, 2, "node-3")
    await register(database, "node-3", "boot-2")


async def test_an_agent_that_proves_its_restart_need_not_wait(database: Database) -> None:
    await register(database, "node-3", **HOST)
    node, _ = await register(database, "node-3", "boot-2", replaces_boot_id="boot-1", **HOST)
    assert node.boot_id == "boot-2"


@pytest.mark.parametrize(
    ("replaces", "host"),
    [
        ("boot-0", HOST),
        (None, HOST),
        ("boot-1", HOST | {"hostname": "beta"}),
        ("boot-1", HOST | {"local_ip": "10.0.0.8"}),
        ("boot-1", {"hostname": HOST["hostname"]}),
        ("boot-1", {}),
    ],
)
async def test_a_restart_is_not_believed_of_another_run_or_host(
    database: Database, replaces: str | None, host: dict[str, str]
) -> None:
    await register(database, "node-3", **HOST)
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2", replaces_boot_id=replaces, **host)


async def test_a_restart_is_not_believed_of_hosts_that_say_nothing_of_themselves(
    database: Database,
) -> None:
    await register(database, "node-3")
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2", replaces_boot_id="boot-1")


@pytest.mark.parametrize("spelling", ["2001:db8:0:0::7", "2001:DB8::7", "2001:0db8:0000::0007"])
async def test_an_address_is_the_same_however_it_is_written(
    database: Database, spelling: str
) -> None:
    await register(database, "node-3", hostname="alpha", local_ip="2001:db8::7")
    await register(
        database,
        "node-3",
        "boot-2",
        replaces_boot_id="boot-1",
        hostname="alpha",
        local_ip=spelling,
    )


async def test_a_seeded_node_is_held_by_nobody(database: Database) -> None:
    node, created = await register(database, "node-1-hetzner-gex44", role=NodeRole.PRODUCTION)
    assert not created
    assert (node.status, node.status_reason) == (NodeStatus.ONLINE, StatusReason.REGISTERED)
    assert node.hostname == "gateway.daarion.city"


async def test_an_absent_id_is_made_from_the_hostname(database: Database) -> None:
    node, _ = await register(database, None, hostname="MacBook Pro.local")
    assert (node.node_id, node.node_name) == ("macbook-pro.local", "macbook-pro.local")


@pytest.mark.parametrize("hostname", [None, "", "---", "Ключ"])
async def test_an_id_is_made_without_a_usable_hostname_too(
    database: Database, hostname: str | None
) -> None:
    node, _ = await register(database, None, hostname=hostname)
    assert node.node_id == "node"


async def test_an_id_that_is_made_is_unique(database: Database) -> None:
    made = [
        (await register(database, None, f"boot-{n}", hostname="alpha"))[0].node_id for n in range(5)
    ]
    assert made[0] == "alpha"
    assert len(set(made)) == 5
    assert all(node_id.startswith("alpha-") for node_id in made[1:])


async def test_a_run_without_an_id_that_registers_twice_is_the_same_node(
    database: Database,
) -> None:
    await register(database, "alpha", "boot-0")
    outcomes = await asyncio.gather(
        *(register(database, None, "boot-1", hostname="alpha") for _ in range(8))
    )
    assert len({node.id for node, _ in outcomes}) == 1
    assert [created for _, created in outcomes].count(True) == 1


async def test_runs_without_an_id_at_the_same_moment_are_nodes_of_their_own(
    database: Database,
) -> None:
    outcomes = await asyncio.gather(
        *(register(database, None, f"boot-{n}", hostname="alpha") for n in range(8))
    )
    assert all(created for _, created in outcomes)
    assert len({node.node_id for node, _ in outcomes}) == 8


async def test_one_new_id_registered_at_the_same_moment_makes_one_node(database: Database) -> None:
    for turn in range(20):
        node_id = f"node-{turn}"
        outcomes = await asyncio.gather(*(register(database, node_id) for _ in range(4)))
        assert [created for _, created in outcomes].count(True) == 1
        assert len({node.id for node, _ in outcomes}) == 1
        assert len(await list_changes(database, outcomes[0][0].id)) == 1


async def test_of_two_machines_that_claim_a_new_id_at_once_one_gets_it(database: Database) -> None:
    for turn in range(20):
        outcomes = await asyncio.gather(
            *(register(database, f"node-{turn}", f"boot-{n}") for n in range(4)),
            return_exceptions=True,
        )
        [(winner, created)] = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
        assert created
        assert [type(outcome) for outcome in outcomes].count(NodeIdTaken) == 3
        assert (await get_node(database, winner.node_id)).boot_id == winner.boot_id


async def test_two_that_would_replace_a_silent_holder_at_once_do_not_both(
    database: Database,
) -> None:
    for turn in range(10):
        await register(database, f"node-{turn}")
        await age(database, OVERDUE)
        outcomes = await asyncio.gather(
            *(register(database, f"node-{turn}", f"boot-{n}") for n in (2, 3)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {tuple, NodeIdTaken}


async def test_a_node_that_was_offline_is_online_again_when_registered(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await age(database, EXPIRED, "node-3")
    await run_sweep(database)
    assert (await get_node(database, "node-3")).status is NodeStatus.OFFLINE
    again, _ = await register(database, "node-3")
    assert (again.status, again.status_reason) == (NodeStatus.ONLINE, StatusReason.REGISTERED)
    last = (await list_changes(database, node.id))[-1]
    assert (last.previous_status, last.status) == (NodeStatus.OFFLINE, NodeStatus.ONLINE)


async def test_registering_anew_takes_back_what_the_last_run_said_of_itself(
    database: Database,
) -> None:
    await register(database, "node-3")
    await beat(database, "node-3", degraded=True)
    node, _ = await register(database, "node-3")
    assert (node.status, node.reported_degraded) == (NodeStatus.ONLINE, False)


async def test_maintenance_survives_a_registration(database: Database) -> None:
    await register(database, "node-3")
    until = datetime.now(UTC) + timedelta(hours=1)
    async with database.write() as session:
        await nodes.start_maintenance(session, "node-3", note=None, until=until, caller=OPERATOR)
    node, _ = await register(database, "node-3", labels=["new"])
    assert (node.status, node.maintenance_until) == (NodeStatus.MAINTENANCE, until)
    assert (node.status_reason, node.labels) == (StatusReason.MAINTENANCE_STARTED, ["new"])


async def test_the_profiles_of_a_registration_are_put(database: Database) -> None:
    llama = ProfileContent("llama", ProfileType.LLM, {"context": 8192})
    proxy = ProfileContent("proxy", ProfileType.SERVICE, {}, enabled=False)
    node, _ = await register(database, "node-3", profiles=[proxy, llama])
    assert await list_profiles(database, node) == [("llama", 1, True), ("proxy", 1, False)]
    await register(database, "node-3", profiles=[ProfileContent("proxy", ProfileType.SERVICE, {})])
    assert await list_profiles(database, node) == [("llama", 1, True), ("proxy", 2, True)]


async def list_profiles(database: Database, node: Node) -> list[tuple[str, int, bool]]:
    async with database.read() as session:
        found = await profiles.list_node_profiles(session, [node.id])
    return [(profile.profile_name, profile.version, profile.enabled) for profile in found[node.id]]


async def test_a_removed_id_can_be_registered_anew_and_its_history_stays(
    database: Database,
) -> None:
    first, _ = await register(database, "node-3", labels=["old"])
    async with database.write() as session:
        await nodes.deregister(session, "node-3", note="sold", caller=OPERATOR)
    second, created = await register(database, "node-3")
    assert created
    assert second.id != first.id
    assert second.labels == []
    async with database.read() as session:
        page = await history.list_status_changes(
            session, NodeFilter(node_ids=("node-3",)), first=10, after=None
        )
    assert [(change.node, change.reason) for change in page.rows] == [
        (second.id, StatusReason.REGISTERED),
        (first.id, StatusReason.DEREGISTERED),
        (first.id, StatusReason.REGISTERED),
    ]
    assert page.rows[1].note == "sold"


async def test_registrations_and_removals_of_one_id_at_once_keep_one_node_at_most(
    database: Database,
) -> None:
    async def remove() -> None:
        async with database.write() as session:
            await nodes.deregister(session, "node-3", note=None, caller=OPERATOR)

    for _ in range(10):
        await register(database, "node-3")
        outcomes = await asyncio.gather(
            remove(), register(database, "node-3"), register(database, "node-3")
        )
        assert outcomes[0] is None
        registered = "SELECT count(*) FROM nodes WHERE node_id = 'node-3' AND removed_at IS NULL"
        [(left,)] = await fetch_rows(database, registered)
        assert left <= 1


async def test_a_registration_never_moves_back_when_a_node_was_heard(database: Database) -> None:
    """Its transaction began before a heartbeat that was committed while it waited."""
    await register(database, "node-3")
    async with database.write() as session:
        await session.execute(text("SELECT now()"))
        recorded = await beat(database, "node-3")
        node, _ = await registration.register(
            session, make_registration("node-3"), rules=RULES, caller=AGENT
        )
    assert node.heard_at is not None
    assert node.heard_at >= recorded.received_at
