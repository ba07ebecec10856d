"""A fleet of varied nodes, the same in every run, inserted as registered and with a heartbeat."""

import random
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import text

from db.access.token_changes import MAX_NODES, create_token
from db.core.database import Database
from db.core.enums import Role
from db.core.identity import Caller, Identity
from db.retention.partitions import make_day_partitions

_CALLER = Caller(Identity("bench", Role.ADMIN))

LABELS = ("gpu", "eu", "us", "spot", "edge", "trusted")
MODELS = ("llama3:8b", "llama3:70b", "qwen2.5:32b", "mistral:7b", "phi4", "gemma2:27b")

_INSERT = text("""
WITH input AS (
    SELECT * FROM unnest(CAST(:node_ids AS text[]), CAST(:roles AS text[]), CAST(:types AS text[]),
                         CAST(:statuses AS text[]), CAST(:labels AS text[]),
                         CAST(:capabilities AS text[]), CAST(:metrics AS text[]))
    AS s (node_id, role, type, status, labels, capabilities, metrics)
), node AS (
    INSERT INTO nodes (node_id, node_name, node_role, node_type, hostname, status, status_reason,
                       labels, capabilities, boot_id, heard_at, last_heartbeat,
                       heartbeat_interval_seconds)
    SELECT node_id, initcap(node_id), role, type, node_id || '.example', status, 'heartbeat',
           string_to_array(labels, ','), CAST(capabilities AS jsonb), 'boot-1', now(), now(), 86400
    FROM input
    RETURNING id, node_id, status
), heartbeat AS (
    INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
    SELECT now(), node.id, node.status, CAST(input.metrics AS jsonb)
    FROM node JOIN input USING (node_id)
    RETURNING id, node_id
), change AS (
    INSERT INTO status_changes (revision, node_id, status, reason, actor, changed_at)
    SELECT s.revision + row_number() OVER (), node.id, node.status, 'registered', 'bench', now()
    FROM node, registry_state s
    RETURNING revision
)
SELECT node_id, id FROM heartbeat
""")
_SET_LAST_HEARTBEAT = text("""
UPDATE nodes SET last_heartbeat_id = h.heartbeat
FROM unnest(CAST(:nodes AS uuid[]), CAST(:heartbeats AS bigint[])) AS h (node, heartbeat)
WHERE id = h.node
""")
_SET_REVISION = text(
    "UPDATE registry_state SET revision = (SELECT max(revision) FROM status_changes)"
)
_PROFILES = text("""
INSERT INTO node_profiles (node_id, profile_name, profile_type, config)
SELECT id, 'llm', 'llm', '{"temperature": 0.2}' FROM nodes WHERE boot_id = 'boot-1'
ON CONFLICT DO NOTHING
""")
_ROLE_PROFILES = text("""
INSERT INTO role_profiles (node_role, node_type, profile_name, profile_type, config)
SELECT r, t, 'llm', 'llm', '{"model": "llama3:8b", "context_tokens": 8192}'
FROM unnest(ARRAY['production', 'development', 'backup']) r,
     unnest(ARRAY['router', 'gateway', 'worker']) t
ON CONFLICT DO NOTHING
""")
# Autovacuum would do so within a minute; a fleet inserted by one statement fills its pages.
_ANALYZE = text("VACUUM ANALYZE")


def format_node_id(number: int) -> str:
    return f"node-{number:05}"


async def insert_nodes(database: Database, count: int, *, first: int = 0) -> None:
    """Insert `count` nodes, numbered from `first`.

    Each has a heartbeat of this moment, a profile of its own and one of its role.
    """
    rng = random.Random(1)  # noqa: S311  # the same fleet in every run
    fleet = [_generate_node(rng, number) for number in range(first, first + count)]
    columns = {name: [node[name] for node in fleet] for name in fleet[0]}
    async with database.write() as session:
        await make_day_partitions(session)
        heartbeats = (await session.execute(_INSERT, columns)).all()
        parameters = {
            "nodes": [node for node, _ in heartbeats],
            "heartbeats": [heartbeat for _, heartbeat in heartbeats],
        }
        await session.execute(_SET_LAST_HEARTBEAT, parameters)
        for statement in (_SET_REVISION, _PROFILES, _ROLE_PROFILES):
            await session.execute(statement)
    async with database.read() as session:
        await session.execute(_ANALYZE)


async def create_agent_tokens(database: Database, count: int) -> dict[str, str]:
    """Create tokens for the first `count` nodes and return their texts by node id.

    Each token is for as many nodes as one token may be for.
    """
    node_ids = [format_node_id(number) for number in range(count)]
    tokens: dict[str, str] = {}
    async with database.write() as session:
        for first in range(0, count, MAX_NODES):
            nodes = node_ids[first : first + MAX_NODES]
            created = await create_token(
                session, role=Role.AGENT, nodes=nodes, lifetime=timedelta(days=1), caller=_CALLER
            )
            tokens |= dict.fromkeys(nodes, created.text)
    return tokens


def _generate_node(rng: random.Random, number: int) -> dict[str, str]:
    """Return the parameters of `_INSERT` for one node."""
    models = rng.sample(MODELS, rng.randint(0, 3))
    gpus = [
        {
            "name": "RTX 4000 Ada",
            "utilization_percent": rng.uniform(0, 100),
            "memory_total_mb": 20475,
            "memory_free_mb": rng.uniform(0, 20475),
        }
        for _ in range(rng.choice((0, 1, 1, 2)))
    ]
    capabilities: dict[str, Any] = {"models": models, "os": rng.choice(("linux", "macos"))}
    metrics = {
        "cpu_percent": rng.uniform(0, 100),
        "memory_percent": rng.uniform(0, 100),
        "memory_available_mb": rng.uniform(1000, 128000),
        "disk_percent": rng.uniform(0, 100),
        "load_average": rng.uniform(0, 16),
        "gpus": gpus,
    }
    return {
        "node_ids": format_node_id(number),
        "roles": rng.choice(("production", "production", "development", "backup")),
        "types": rng.choice(("worker", "worker", "worker", "gateway", "router")),
        "statuses": rng.choices(("online", "degraded", "offline"), (90, 5, 5))[0],
        "labels": ",".join(rng.sample(LABELS, rng.randint(1, 3))),
        "capabilities": orjson.dumps(capabilities).decode(),
        "metrics": orjson.dumps(metrics).decode(),
    }
