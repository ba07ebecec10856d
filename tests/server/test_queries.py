"""Queries over HTTP against a running registry."""

import pytest
from sqlalchemy import text

from tests.support.api import beat, register, wait_for_revision
from tests.support.live_server import LiveServer
from tests.support.statements import record_statements

PAGE = """
query Page($filter: NodeFilter, $orderBy: NodeOrder, $first: Int, $after: String) {
  nodes(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
    nodes { nodeId }
    edges { cursor node { nodeId } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    totalCount
    revision
  }
}
"""

EVERYTHING = """
query Everything($first: Int) {
  nodes(first: $first) {
    totalCount
    nodes {
      nodeId name role type labels ipAddress localIp hostname capabilities metadata
      metrics { cpuPercent gpus { name memoryFreeMb } extra }
      profiles { name config }
      llms: profiles(type: LLM, enabled: true) { name }
      effectiveProfiles { name config fromRole fromNode }
      heartbeats(first: 2) { nodes { receivedAt status metrics { cpuPercent } } }
      statusChanges(first: 1) { nodes { revision status reason } }
      availability(since: "2020-01-01T00:00:00Z")
    }
  }
}
"""


async def test_registry_returns_its_version_mode_and_counts(server: LiveServer) -> None:
    data = await server.execute(
        "{ registry { version environment mode modeReason revision"
        " nodeCounts { total online degraded offline maintenance } } }"
    )
    assert data["registry"] == {
        "version": "0.1.0",
        "environment": "development",
        "mode": "NORMAL",
        "modeReason": None,
        "revision": "2",
        "nodeCounts": {"total": 2, "online": 0, "degraded": 0, "offline": 2, "maintenance": 0},
    }


async def test_the_seeded_nodes_exist_from_the_start(server: LiveServer) -> None:
    data = await server.execute("{ nodes { nodes { nodeId name status statusReason } } }")
    assert data["nodes"]["nodes"] == [
        {
            "nodeId": "node-1-hetzner-gex44",
            "name": "Hetzner GEX44 Production",
            "status": "OFFLINE",
            "statusReason": "SEEDED",
        },
        {
            "nodeId": "node-2-macbook-m4max",
            "name": "MacBook Pro M4 Max",
            "status": "OFFLINE",
            "statusReason": "SEEDED",
        },
    ]


async def test_a_node_that_is_not_registered_is_null(server: LiveServer) -> None:
    data = await server.execute('{ node(nodeId: "nobody") { nodeId } }')
    assert data == {"node": None}


async def test_a_node_shows_all_that_its_agent_reported(server: LiveServer) -> None:
    await register(
        server,
        "gpu-7",
        name="GPU 7",
        labels=["gpu", "fast"],
        ipAddress="2001:db8:0:0::7",
        localIp="10.0.0.7",
        hostname="gpu-7.example",
        capabilities={"models": ["llama"]},
        metadata={"rack": 4},
        profiles=[{"name": "llm", "type": "LLM", "config": {"temperature": 0.2}}],
    )
    metrics = {
        "cpuPercent": 12.5,
        "gpus": [{"name": "RTX 4000", "memoryFreeMb": 9120}],
        "extra": {"fans": [1, 2]},
    }
    await beat(server, "gpu-7", 1, metrics=metrics)
    data = await server.execute(EVERYTHING)
    [node] = [node for node in data["nodes"]["nodes"] if node["nodeId"] == "gpu-7"]
    assert node.pop("availability") > 0
    [heartbeat] = node.pop("heartbeats")["nodes"]
    assert heartbeat["status"] == "ONLINE"
    assert heartbeat["metrics"] == {"cpuPercent": 12.5}
    config = {"temperature": 0.2}
    assert node == {
        "nodeId": "gpu-7",
        "name": "GPU 7",
        "role": "PRODUCTION",
        "type": "WORKER",
        "labels": ["gpu", "fast"],
        "ipAddress": "2001:db8::7",
        "localIp": "10.0.0.7",
        "hostname": "gpu-7.example",
        "capabilities": {"models": ["llama"]},
        "metadata": {"rack": 4},
        "metrics": metrics,
        "profiles": [{"name": "llm", "config": config}],
        "llms": [{"name": "llm"}],
        "effectiveProfiles": [
            {"name": "llm", "config": config, "fromRole": False, "fromNode": True}
        ],
        "statusChanges": {"nodes": [{"revision": "3", "status": "ONLINE", "reason": "REGISTERED"}]},
    }


async def test_a_list_costs_as_many_statements_as_one_node(quiet_server: LiveServer) -> None:
    server = quiet_server
    for number in range(20):
        node_id = f"node-{number}"
        profile = {"name": "p", "type": "SERVICE", "config": {}}
        await register(server, node_id, profiles=[profile])
        await beat(server, node_id, 1)
    await wait_for_revision(server, 22)
    statement_counts = []
    for first in (1, 22):
        with record_statements(server.services.database) as sent:
            data = await server.execute(EVERYTHING, first=first)
        assert len(data["nodes"]["nodes"]) == first
        statement_counts.append(len(sent))
    assert statement_counts[0] == statement_counts[1] <= 12


@pytest.mark.parametrize("first", [1, 100])
async def test_a_page_with_profiles_and_last_changes_costs_six_statements(
    quiet_server: LiveServer, first: int
) -> None:
    for number in range(100):
        profile = {"name": f"p{number % 3}", "type": "SERVICE", "config": {}}
        await register(quiet_server, f"node-{number}", profiles=[profile])
    await wait_for_revision(quiet_server, 102)
    with record_statements(quiet_server.services.database) as sent:
        await quiet_server.execute(
            "query ($first: Int) { nodes(first: $first) { revision nodes {"
            " nodeId name role type labels status statusReason statusSince lastHeartbeat hostname"
            " profiles { name config } effectiveProfiles { name config }"
            " statusChanges(first: 1) { nodes { revision reason } } } } }",
            first=first,
        )
    assert len(sent) == 6


async def test_total_count_costs_nothing_unless_it_is_requested(
    quiet_server: LiveServer,
) -> None:
    with record_statements(quiet_server.services.database) as sent:
        await quiet_server.execute("{ nodes { nodes { nodeId } } }")
    assert not any("count(" in statement for statement in sent)


@pytest.mark.parametrize("field", ["NODE_ID", "NAME", "STATUS_SINCE", "REGISTERED_AT"])
@pytest.mark.parametrize("direction", ["ASC", "DESC"])
async def test_pages_follow_one_another_in_every_order(
    server: LiveServer, field: str, direction: str
) -> None:
    for number in range(5):
        await register(server, f"node-{number}", name=f"Name {9 - number}")
    order = {"field": field, "direction": direction}
    full_list = await server.execute(PAGE, orderBy=order)
    node_ids: list[str] = []
    cursor = None
    while True:
        data = await server.execute(PAGE, orderBy=order, first=3, after=cursor)
        page = data["nodes"]
        node_ids += [node["nodeId"] for node in page["nodes"]]
        assert page["totalCount"] == 7
        assert page["pageInfo"]["hasPreviousPage"] == (cursor is not None)
        assert page["pageInfo"]["startCursor"] == page["edges"][0]["cursor"]
        cursor = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert node_ids == [node["nodeId"] for node in full_list["nodes"]["nodes"]]
    assert len(set(node_ids)) == 7


async def test_an_empty_page_has_no_cursors(server: LiveServer) -> None:
    data = await server.execute(PAGE, first=0)
    assert data["nodes"]["nodes"] == []
    assert data["nodes"]["totalCount"] == 2
    assert data["nodes"]["pageInfo"] == {
        "hasNextPage": True,
        "hasPreviousPage": False,
        "startCursor": None,
        "endCursor": None,
    }


async def test_the_revision_of_a_list_is_where_its_live_changes_begin(server: LiveServer) -> None:
    before = await server.execute(PAGE)
    await register(server, "late")
    after = await server.execute(PAGE)
    assert int(after["nodes"]["revision"]) == int(before["nodes"]["revision"]) + 1


async def test_the_change_log_is_returned_newest_first_in_pages(server: LiveServer) -> None:
    await register(server, "a")
    await beat(server, "a", 1, status="DEGRADED")
    query = """query Log($after: String, $filter: NodeFilter) {
      statusChanges(first: 1, after: $after, filter: $filter) {
        nodes { revision nodeId previousStatus status reason actor }
        pageInfo { endCursor hasNextPage }
      }
    }"""
    first = (await server.execute(query, filter={"nodeIds": ["a"]}))["statusChanges"]
    assert first["nodes"] == [
        {
            "revision": "4",
            "nodeId": "a",
            "previousStatus": "ONLINE",
            "status": "DEGRADED",
            "reason": "SELF_REPORTED",
            "actor": "system/anonymous",
        }
    ]
    cursor = first["pageInfo"]["endCursor"]
    last = (await server.execute(query, filter={"nodeIds": ["a"]}, after=cursor))["statusChanges"]
    assert [change["revision"] for change in last["nodes"]] == ["3"]
    assert not last["pageInfo"]["hasNextPage"]


async def test_the_status_filter_matches_the_new_status_of_a_change(server: LiveServer) -> None:
    await register(server, "a")
    await beat(server, "a", 1, status="DEGRADED")
    await beat(server, "a", 2)
    query = "query Log($filter: NodeFilter) { statusChanges(filter: $filter) { nodes { status } } }"
    data = await server.execute(query, filter={"statuses": ["DEGRADED"]})
    assert data["statusChanges"]["nodes"] == [{"status": "DEGRADED"}]


async def test_documented_sql_of_operators_runs_unchanged(server: LiveServer) -> None:
    await register(server, "a", profiles=[{"name": "p", "type": "LLM", "config": {}}])
    async with server.services.database.read() as session:
        listed = await session.execute(
            text("SELECT node_id, node_name, status, last_heartbeat FROM nodes;")
        )
        joined = await session.execute(
            text(
                "SELECT n.node_name, p.profile_name, p.profile_type, p.enabled"
                " FROM nodes n JOIN node_profiles p ON n.id = p.node_id;"
            )
        )
    assert ("a", "a", "online", None) in [tuple(row) for row in listed]
    assert [tuple(row) for row in joined] == [("a", "p", "llm", True)]
