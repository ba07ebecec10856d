"""Heartbeats as clients send them: one over HTTP or a websocket, or many by a gateway's call."""

import random
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import orjson

from agent.documents import RECORD_HEARTBEAT, id_of
from bench.http_connection import post
from bench.nodes import node_id

A_CALL = 100
GATEWAYS = 8
"""Connections on which so many come with each call."""

RECORD_HEARTBEATS = """
mutation RecordHeartbeats($inputs: [RecordHeartbeatInput!]!) {
  recordHeartbeats(inputs: $inputs) {
    ... on RecordHeartbeatPayload { nodeId status receivedAt nextHeartbeatInSeconds }
    ... on HeartbeatRejected { nodeId code message }
  }
}
"""

_BYTES = 159
"""Of the metrics below, without what fills them up, as the log keeps them."""

Heartbeats = Iterator[dict[str, Any]]
"""Each as RecordHeartbeatInput."""


def beats(fleet: int, metrics_bytes: int = 0) -> Heartbeats:
    """Of all nodes in turn, over and over, each time newer, in an order that is not that of their
    rows; of metrics as the log keeps them there are at least so many bytes.
    """
    order = random.Random(1).sample(range(fleet), fleet)  # noqa: S311  # the same each time
    more = "-" * (metrics_bytes - _BYTES)
    sequence = 0
    while True:
        sequence += 1
        for number in order:
            yield {
                "nodeId": node_id(number),
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


def posts(path: str, beats: Heartbeats) -> Iterator[bytes]:
    for beat in beats:
        yield post(path, orjson.dumps(_one(beat)))


def keyed_posts(path: str, beats: Heartbeats, keys: Mapping[str, str]) -> Iterator[bytes]:
    """Each with the key of its node."""
    for beat in beats:
        yield post(path, orjson.dumps(_one(beat)), keys[beat["nodeId"]])


def messages(beats: Heartbeats) -> Iterator[str]:
    for beat in beats:
        yield orjson.dumps({"id": "1", "type": "subscribe", "payload": _one(beat)}).decode()


def calls(beats: Heartbeats) -> Iterator[bytes]:
    while True:
        asked = {"query": RECORD_HEARTBEATS, "variables": {"inputs": [*islice(beats, A_CALL)]}}
        yield post("/graphql", orjson.dumps(asked))


def _one(beat: dict[str, Any]) -> dict[str, Any]:
    return {"documentId": id_of(RECORD_HEARTBEAT), "variables": {"input": beat}}
