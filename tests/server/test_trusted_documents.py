"""Requests by document id: the trusted documents of our own agent and client."""

from typing import Any

import pytest

from agent import documents as agent
from agent.trusted_documents import compute_id, get_text
from graph.execution.document_cache import compute_document_id
from tests.support.live_server import LiveServer
from tests.support.transport_ws import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = compute_id(agent.NODE_STATUS)
NODE = {"nodeId": "node-1-hetzner-gex44"}


async def test_trusted_document_is_executed_by_id_on_every_transport(
    shared_server: LiveServer,
) -> None:
    text = get_text(agent.NODE_STATUS)
    data = await shared_server.execute(text, **NODE)
    assert data["node"]["nodeId"] == NODE["nodeId"]
    by_post = await shared_server.http.post(
        "/graphql", json={"documentId": ID, "variables": NODE, "operationName": "NodeStatus"}
    )
    by_get = await shared_server.http.get(
        "/graphql",
        params={"documentId": ID, "variables": '{"nodeId":"node-1-hetzner-gex44"}'},
        headers={"accept": "text/html, */*"},
    )
    for response in (by_post, by_get):
        assert response.status_code == 200
        assert response.json() == {"data": data}
    async with connect(shared_server.websocket_url) as client:
        payload = {"documentId": ID, "variables": NODE}
        await client.send({"id": "1", "type": "subscribe", "payload": payload})
        assert (await client.receive())["payload"] == {"data": data}


async def test_trusted_subscription_is_executed_by_id(shared_server: LiveServer) -> None:
    async with connect(shared_server.websocket_url) as client:
        payload = {"documentId": compute_id(agent.STATUS_CHANGES), "variables": {"after": "0"}}
        await client.send({"id": "1", "type": "subscribe", "payload": payload})
        event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
        assert event["change"]["revision"] == "1"


async def test_mutation_by_id_over_get_is_rejected(shared_server: LiveServer) -> None:
    response = await shared_server.http.get(
        "/graphql", params={"documentId": compute_id(agent.RECORD_HEARTBEAT)}
    )
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param({"documentId": f"sha256:{'0' * 64}"}, "documentId", id="unknown"),
        pytest.param({"documentId": ID.upper()}, "documentId", id="in capitals"),
        pytest.param({"documentId": ID.removeprefix("sha256:")}, "documentId", id="no prefix"),
        pytest.param({"documentId": ""}, "documentId", id="empty"),
        pytest.param({"documentId": 1}, "documentId", id="a number"),
        pytest.param({"documentId": ID, "query": "{ __typename }"}, "query", id="both"),
        pytest.param({"documentId": ID, "operationName": "X"}, "operationName", id="no such name"),
    ],
)
async def test_invalid_document_id_is_rejected_and_named(
    shared_server: LiveServer, request_: dict[str, Any], field: str
) -> None:
    for accept in ("application/json", "application/graphql-response+json"):
        response = await shared_server.http.post(
            "/graphql", json=request_, headers={"accept": accept}
        )
        assert response.status_code == 400
        [error] = response.json()["errors"]
        assert error["extensions"]["code"] == "BAD_INPUT"
        assert error["extensions"]["field"] == field


async def test_unknown_document_id_ends_one_operation_and_not_the_websocket(
    shared_server: LiveServer,
) -> None:
    async with connect(shared_server.websocket_url) as client:
        payload = {"documentId": f"sha256:{'0' * 64}"}
        await client.send({"id": "1", "type": "subscribe", "payload": payload})
        message = await client.receive()
        assert (message["type"], message["id"]) == ("error", "1")
        assert message["payload"][0]["extensions"]["field"] == "documentId"
        assert "documentId: is not known" in message["payload"][0]["message"]
        await client.subscribe("1", "{ __typename }")
        assert (await client.receive())["payload"] == {"data": {"__typename": "Query"}}


async def test_sent_document_does_not_become_trusted(shared_server: LiveServer) -> None:
    text = "{ registry { revision } }"
    for _ in range(3):
        await shared_server.execute(text)
    body = await shared_server.http.post("/graphql", json={"documentId": compute_document_id(text)})
    assert body.json()["errors"][0]["extensions"]["field"] == "documentId"
