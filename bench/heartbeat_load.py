"""Heartbeats as clients send them: one over HTTP or a websocket, or many by a gateway's call."""

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
"""Connections on which so many come with each call."""

RECORD_HEARTBEATS = """
mutation RecordHeartbeats($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    ... on RecordHeartbeatPayload { nodeId status receivedAt nextHeartbeatInSeconds }
    ... on HeartbeatRejected { nodeId code message }
  }
}
"""

_METRICS_BYTES = 159
"""Of the metrics below, without what fills them up, as the log keeps them."""

Heartbeats = Iterator[dict[str, Any]]
"""Each as RecordHeartbeatInput."""


def generate_heartbeats(fleet: int, metrics_bytes: int = 0) -> Heartbeats:
    """Of all nodes in turn, over and over, each time newer, in an order that is not that of their
    rows; of metrics as the log keeps them there are at least so many bytes.
    """
    order = random.Random(1).sample(range(fleet), fleet)  # noqa: S311  # the same each time
    more = "-" * (metrics_bytes - _METRICS_BYTES)
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
                    "extra": {"uptimeSeconds": 123456, "more": more},
                },
            }


def encode_posts(path: str, beats: Heartbeats) -> Iterator[bytes]:
    for beat in beats:
        yield encode_post(path, orjson.dumps(_build_operation(beat)))


def encode_authorized_posts(
    path: str, beats: Heartbeats, keys: Mapping[str, str]
) -> Iterator[bytes]:
    """Each with the key of its node."""
    for beat in beats:
        yield encode_post(path, orjson.dumps(_build_operation(beat)), keys[beat["nodeId"]])


def encode_messages(beats: Heartbeats) -> Iterator[str]:
    for beat in beats:
        yield orjson.dumps(
            {"id": "1", "type": "subscribe", "payload": _build_operation(beat)}
        ).decode()


def encode_batch_posts(beats: Heartbeats) -> Iterator[bytes]:
    while True:
        asked = {
            "query": RECORD_HEARTBEATS,
            "variables": {"inputs": [*islice(beats, HEARTBEATS_PER_CALL)]},
        }
        yield encode_post("/graphql", orjson.dumps(asked))


def _build_operation(beat: dict[str, Any]) -> dict[str, Any]:
    return {"documentId": compute_id(RECORD_HEARTBEAT), "variables": {"input": beat}}
