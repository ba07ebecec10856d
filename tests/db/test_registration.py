"""Registration: how runs of agents claim node ids, and lose them."""

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


async def test_new_node_is_online_and_logged(database: Database) -> None:
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


async def test_absent_fields_of_a_registration_have_defaults(database: Database) -> None:
    node, _ = await register(database, "node-3")
    assert node.node_name == "node-3"
    assert (node.labels, node.capabilities, node.metadata_) == ([], {}, {})
    assert (node.ip_address, node.local_ip, node.hostname) == (None, None, None)


async def test_repeated_registration_of_a_run_changes_no_status(database: Database) -> None:
    first, _ = await register(database, "node-3")
    await beat(database, "node-3", 7)
    second, created = await register(database, "node-3")
    assert not created
    assert (second.id, second.last_sequence) == (first.id, 7)
    assert second.heard_at is not None
    assert second.last_heartbeat is not None
    assert second.heard_at > second.last_heartbeat
    assert len(await list_changes(database, first.id)) == 1


async def test_present_fields_replace_and_absent_fields_stay(database: Database) -> None:
    fields: dict[str, Any] = {
        "name": "Third",
        "labels": ["a", "b"],
        "capabilities": {"x": 1},
        "metadata": {"y": 2},
    }
    await register(database, "node-3", ip_address="192.0.2.1", **fields, **HOST)
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


async def test_another_run_is_rejected_while_the_holder_is_live(database: Database) -> None:
    holder, _ = await register(database, "node-3", ip_address="192.0.2.1", **HOST)
    before = await get_node(database, "node-3")
    with pytest.raises(NodeIdTaken) as rejection:
        await register(database, "node-3", "boot-2", hostname="beta", labels=["stolen"])
    facts = dict(rejection.value.details)
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
    assert rejection.value.retryable
    assert await get_node(database, "node-3") == before


async def test_silent_holder_is_replaced(database: Database) -> None:
    first, _ = await register(database, "node-3", **HOST)
    await beat(database, "node-3", 9)
    await age(database, OVERDUE, "node-3")
    second, created = await register(database, "node-3", "boot-2", hostname="beta")
    assert not created
    assert (second.id, second.boot_id, second.last_sequence) == (first.id, "boot-2", None)
    [stale] = await record(database, make_report("node-3", 10))
    assert isinstance(stale, StaleBoot)
    await beat(database, "node-3", 0, boot_id="boot-2")


async def test_holder_is_replaced_only_after_its_interval_and_grace(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await age(database, node.heartbeat_interval_seconds + RULES.grace - 2, "node-3")
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2")
    await age(database, 2, "node-3")
    await register(database, "node-3", "boot-2")


async def test_agent_that_proves_its_restart_replaces_its_run_immediately(
    database: Database,
) -> None:
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
async def test_restart_of_another_run_or_host_is_rejected(
    database: Database, replaces: str | None, host: dict[str, str]
) -> None:
    await register(database, "node-3", **HOST)
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2", replaces_boot_id=replaces, **host)


async def test_restart_of_an_unidentified_host_is_rejected(
    database: Database,
) -> None:
    await register(database, "node-3")
    with pytest.raises(NodeIdTaken):
        await register(database, "node-3", "boot-2", replaces_boot_id="boot-1")


@pytest.mark.parametrize("spelling", ["2001:db8:0:0::7", "2001:DB8::7", "2001:0db8:0000::0007"])
async def test_spellings_of_an_address_are_equal(database: Database, spelling: str) -> None:
    await register(database, "node-3", hostname="alpha", local_ip="2001:db8::7")
    await register(
        database,
        "node-3",
        "boot-2",
        replaces_boot_id="boot-1",
        hostname="alpha",
        local_ip=spelling,
    )


async def test_seeded_node_has_no_holder(database: Database) -> None:
    node, created = await register(database, "node-1-hetzner-gex44", role=NodeRole.PRODUCTION)
    assert not created
    assert (node.status, node.status_reason) == (NodeStatus.ONLINE, StatusReason.REGISTERED)
    assert node.hostname == "gateway.daarion.city"


async def test_absent_node_id_is_derived_from_the_hostname(database: Database) -> None:
    node, _ = await register(database, None, hostname="MacBook Pro.local")
    assert (node.node_id, node.node_name) == ("macbook-pro.local", "macbook-pro.local")


@pytest.mark.parametrize("hostname", [None, "", "---", "Ключ"])
async def test_absent_node_id_without_a_usable_hostname_is_generic(
    database: Database, hostname: str | None
) -> None:
    node, _ = await register(database, None, hostname=hostname)
    assert node.node_id == "node"


async def test_derived_node_id_is_unique(database: Database) -> None:
    node_ids = [
        (await register(database, None, f"boot-{n}", hostname="alpha"))[0].node_id for n in range(5)
    ]
    assert node_ids[0] == "alpha"
    assert len(set(node_ids)) == 5
    assert all(node_id.startswith("alpha-") for node_id in node_ids[1:])


async def test_repeated_registrations_of_a_run_without_an_id_make_one_node(
    database: Database,
) -> None:
    await register(database, "alpha", "boot-0")
    outcomes = await asyncio.gather(
        *(register(database, None, "boot-1", hostname="alpha") for _ in range(8))
    )
    assert len({node.id for node, _ in outcomes}) == 1
    assert [created for _, created in outcomes].count(True) == 1


async def test_concurrent_runs_without_an_id_make_separate_nodes(
    database: Database,
) -> None:
    outcomes = await asyncio.gather(
        *(register(database, None, f"boot-{n}", hostname="alpha") for n in range(8))
    )
    assert all(created for _, created in outcomes)
    assert len({node.node_id for node, _ in outcomes}) == 8


async def test_concurrent_registrations_of_a_new_id_make_one_node(database: Database) -> None:
    for number in range(20):
        node_id = f"node-{number}"
        outcomes = await asyncio.gather(*(register(database, node_id) for _ in range(4)))
        assert [created for _, created in outcomes].count(True) == 1
        assert len({node.id for node, _ in outcomes}) == 1
        assert len(await list_changes(database, outcomes[0][0].id)) == 1


async def test_one_of_several_runs_that_claim_a_new_id_wins(database: Database) -> None:
    for number in range(20):
        outcomes = await asyncio.gather(
            *(register(database, f"node-{number}", f"boot-{n}") for n in range(4)),
            return_exceptions=True,
        )
        [(winner, created)] = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
        assert created
        assert [type(outcome) for outcome in outcomes].count(NodeIdTaken) == 3
        assert (await get_node(database, winner.node_id)).boot_id == winner.boot_id


async def test_one_of_two_runs_replaces_a_silent_holder(
    database: Database,
) -> None:
    for number in range(10):
        await register(database, f"node-{number}")
        await age(database, OVERDUE)
        outcomes = await asyncio.gather(
            *(register(database, f"node-{number}", f"boot-{n}") for n in (2, 3)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {tuple, NodeIdTaken}


async def test_registration_brings_an_offline_node_online(database: Database) -> None:
    node, _ = await register(database, "node-3")
    await age(database, EXPIRED, "node-3")
    await run_sweep(database)
    assert (await get_node(database, "node-3")).status is NodeStatus.OFFLINE
    registered, _ = await register(database, "node-3")
    assert (registered.status, registered.status_reason) == (
        NodeStatus.ONLINE,
        StatusReason.REGISTERED,
    )
    last = (await list_changes(database, node.id))[-1]
    assert (last.previous_status, last.status) == (NodeStatus.OFFLINE, NodeStatus.ONLINE)


async def test_registration_clears_the_self_reported_status(
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


async def test_profiles_of_a_registration_are_written(database: Database) -> None:
    llama = ProfileContent("llama", ProfileType.LLM, {"context": 8192})
    proxy = ProfileContent("proxy", ProfileType.SERVICE, {}, enabled=False)
    node, _ = await register(database, "node-3", profiles=[proxy, llama])
    assert await list_profiles(database, node) == [("llama", 1, True), ("proxy", 1, False)]
    await register(database, "node-3", profiles=[ProfileContent("proxy", ProfileType.SERVICE, {})])
    assert await list_profiles(database, node) == [("llama", 1, True), ("proxy", 2, True)]


async def list_profiles(database: Database, node: Node) -> list[tuple[str, int, bool]]:
    async with database.read() as session:
        profiles_by_node = await profiles.list_node_profiles(session, [node.id])
    return [
        (profile.profile_name, profile.version, profile.enabled)
        for profile in profiles_by_node[node.id]
    ]


async def test_removed_id_can_be_registered_again_and_keeps_its_history(
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


async def test_concurrent_registrations_and_removals_keep_at_most_one_node(
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
        query = "SELECT count(*) FROM nodes WHERE node_id = 'node-3' AND removed_at IS NULL"
        [(node_count,)] = await fetch_rows(database, query)
        assert node_count <= 1


async def test_registration_never_moves_the_last_contact_back(database: Database) -> None:
    """The registration's transaction began before a heartbeat that commits in the meantime."""
    await register(database, "node-3")
    async with database.write() as session:
        await session.execute(text("SELECT now()"))
        ack = await beat(database, "node-3")
        node, _ = await registration.register(
            session, make_registration("node-3"), rules=RULES, caller=AGENT
        )
    assert node.heard_at is not None
    assert node.heard_at >= ack.received_at
