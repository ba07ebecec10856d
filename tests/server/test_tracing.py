"""Traces of requests, sent to a real receiver of OTLP over HTTP."""

import asyncio
import sys
import time

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agent import documents as agent
from agent.trusted_documents import compute_id
from graph.core.settings import ConfigurationError, load_settings
from tests.support.api import MAINTENANCE, beat, register
from tests.support.live_server import StartServer
from tests.support.registry_process import find_free_port
from tests.support.trace_receiver import Receiver

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
UNSEEN = "nrk_a-secret-of-somebody"
NAME = "Nrk_aSecretToo"


def get_attributes(span: Span) -> dict[str, str]:
    """Return the attributes of a span as text."""
    return {
        attribute.key: attribute.value.string_value or str(attribute.value.int_value)
        for attribute in span.attributes
    }


async def test_a_request_is_one_trace_from_http_through_graphql_to_sql(
    start_server: StartServer, receiver: Receiver
) -> None:
    async with start_server(otlp_endpoint=receiver.url) as server:
        await register(server, "a")
        response = await server.http.post(
            "/graphql",
            json={
                "documentId": compute_id(agent.NODE_STATUS),
                "variables": {"nodeId": "a", "unseen": UNSEEN},
            },
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"},
        )
        assert response.json()["data"]["node"]["nodeId"] == "a"
    trace = receiver.get_trace(TRACE)
    http, graphql, sql = (trace[name] for name in ("POST /graphql", "query NodeStatus", "SELECT"))
    assert http.parent_span_id.hex() == PARENT
    assert graphql.parent_span_id == http.span_id
    assert sql.parent_span_id == graphql.span_id
    assert get_attributes(http)["http.response.status_code"] == "200"
    assert get_attributes(http)["request.id"] == "mine"
    assert get_attributes(graphql)["graphql.document.id"] == compute_id(agent.NODE_STATUS)
    assert "FROM nodes" in get_attributes(sql)["db.query.text"]
    assert http.start_time_unix_nano <= sql.start_time_unix_nano
    assert sql.end_time_unix_nano <= graphql.end_time_unix_nano <= http.end_time_unix_nano


async def test_a_failed_span_has_its_code_and_no_trace_holds_what_a_caller_sent(
    start_server: StartServer, receiver: Receiver
) -> None:
    async with start_server(otlp_endpoint=receiver.url) as server:
        mutation = MAINTENANCE.replace("mutation Maintenance", f"mutation {NAME}")
        await server.post(mutation, input={"nodeId": "nobody", "enabled": True, "note": UNSEEN})
        await server.post(f'{{ node(nodeId: "{UNSEEN}") {{ nodeId }} }}')
        await server.http.get("/graphql", params={"query": f"# {UNSEEN}\n{{ __typename }}"})
        await server.http.post("/graphql", json={}, headers={"authorization": f"Bearer {UNSEEN}"})
        context = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": f"vendor={UNSEEN}"}
        await server.http.post("/graphql", json={}, headers=context)
    failed = {
        span.name: get_attributes(span)["error.type"] for span in receiver.spans if span.status.code
    }
    assert failed == {"mutation other": "NODE_NOT_FOUND"}
    sent = b"".join(receiver.bodies)
    assert b"GET /graphql" in sent
    assert UNSEEN.encode() not in sent
    assert NAME.encode() not in sent


async def test_a_batch_of_heartbeats_is_linked_to_the_operations_that_wait_for_it(
    start_server: StartServer, receiver: Receiver
) -> None:
    async with start_server(otlp_endpoint=receiver.url) as server:
        await register(server, "a")
        await register(server, "b")
        await asyncio.gather(beat(server, "a", 1), beat(server, "b", 1))
    spans = receiver.spans
    waiting = {span.span_id for span in spans if span.name == "mutation other"}
    batches = {span.span_id: span for span in spans if span.name == "heartbeats.write"}
    linked_ids = [link.span_id for batch in batches.values() for link in batch.links]
    assert len(linked_ids) == len(set(linked_ids)) == 2
    assert set(linked_ids) < waiting
    sent = [
        get_attributes(span)["db.query.text"] for span in spans if span.parent_span_id in batches
    ]
    inserts = [statement for statement in sent if "INSERT INTO heartbeat_log" in statement]
    assert len(inserts) == len(batches)


async def test_background_work_makes_no_traces(
    start_server: StartServer, receiver: Receiver
) -> None:
    async with start_server(otlp_endpoint=receiver.url) as server:
        await server.services.sweeper.sweep()
        await server.http.get("/health")
        await server.http.get("/metrics")
    assert receiver.spans == []


async def test_an_unreachable_receiver_delays_neither_requests_nor_the_stop(
    start_server: StartServer,
) -> None:
    async with start_server(otlp_endpoint=f"http://127.0.0.1:{find_free_port()}") as server:
        await register(server, "a")
        assert (await beat(server, "a", 1))["status"] == "ONLINE"
        stop_began = time.monotonic()
    assert time.monotonic() - stop_began < 10


async def test_a_missing_extra_fails_the_start_with_one_line(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "graph.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError) as rejection:
        async with start_server(otlp_endpoint="http://127.0.0.1:4318"):
            pass
    assert "NODE_REGISTRY_OTLP_ENDPOINT: needs the extra `otel`" in str(rejection.value)
    assert "\n" not in str(rejection.value)


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector:4317", "http://"])
def test_an_invalid_endpoint_is_rejected_by_the_name_of_its_setting(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="NODE_REGISTRY_OTLP_ENDPOINT"):
        load_settings(otlp_endpoint=endpoint)
