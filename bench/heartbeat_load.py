"""Endless streams of heartbeats, encoded as clients send them.

A heartbeat travels alone, over HTTP or a websocket, or with many others in a gateway's call.
"""

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import orjson

from agent.documents import RECORD_HEARTBEAT
from agent.trusted_documents import compute_id
from bench.http_connection import encode_post
from bench.nodes import format_node_id

HEARTBEATS_PER_CALL = 100
GATEWAY_CONNECTIONS = 8
"""Connections of a load whose calls carry HEARTBEATS_PER_CALL heartbeats each."""

RECORD_HEARTBEATS = """
mutation RecordHeartbeats($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    ... on RecordHeartbeatPayload { nodeId status receivedAt nextHeartbeatInSeconds }
    ... on HeartbeatRejected { nodeId code message }
  }
}
"""

_METRICS_BYTES = 159
"""Size of the metrics below in the heartbeat log, without their padding."""

Heartbeats = Iterator[dict[str, Any]]
"""Heartbeats in the form of RecordHeartbeatInput."""


def generate_heartbeats(node_count: int, metrics_bytes: int = 0) -> Heartbeats:
    """Yield heartbeats of all nodes in turn, without end, with a higher sequence in each turn.

    The order of the nodes differs from that of their rows and is the same in every run. The
    metrics of each heartbeat take at least `metrics_bytes` in the heartbeat log.
    """
    order = random.Random(1).sample(range(node_count), node_count)  # noqa: S311  # reproducible
    padding = "-" * (metrics_bytes - _METRICS_BYTES)
    sequence = 0
    while True:
        sequence += 1
        for number in order:
            yield {
                "nodeId": format_node_id(number),
                "bootId": "boot-1",
                "sequence": sequence,
                "metrics": {
                    "cpuPercent": 12.34,
                    "memoryPercent": 43.21,
                    "memoryAvailableMb": 12345.67,
                    "diskPercent": 56.78,
                    "loadAverage": 0.52,
                    "gpus": [],
                    "extra": {"uptimeSeconds": 123456, "more": padding},
                },
            }


def encode_posts(path: str, heartbeats: Heartbeats) -> Iterator[bytes]:
    """Yield an HTTP request for each heartbeat."""
    for heartbeat in heartbeats:
        yield encode_post(path, orjson.dumps(_build_operation(heartbeat)))


def encode_authorized_posts(
    path: str, heartbeats: Heartbeats, tokens: Mapping[str, str]
) -> Iterator[bytes]:
    """Yield an HTTP request for each heartbeat, with the token of its node (by node id)."""
    for heartbeat in heartbeats:
        body = orjson.dumps(_build_operation(heartbeat))
        yield encode_post(path, body, tokens[heartbeat["nodeId"]])


def encode_messages(heartbeats: Heartbeats) -> Iterator[str]:
    """Yield a `subscribe` message of graphql-transport-ws for each heartbeat."""
    for heartbeat in heartbeats:
        message = {"id": "1", "type": "subscribe", "payload": _build_operation(heartbeat)}
        yield orjson.dumps(message).decode()


def encode_batch_posts(heartbeats: Heartbeats) -> Iterator[bytes]:
    """Yield HTTP requests to recordHeartbeats, each with HEARTBEATS_PER_CALL heartbeats."""
    while True:
        inputs = [*islice(heartbeats, HEARTBEATS_PER_CALL)]
        operation = {"query": RECORD_HEARTBEATS, "variables": {"inputs": inputs}}
        yield encode_post("/graphql", orjson.dumps(operation))


def _build_operation(heartbeat: dict[str, Any]) -> dict[str, Any]:
    return {"documentId": compute_id(RECORD_HEARTBEAT), "variables": {"input": heartbeat}}
