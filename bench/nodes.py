"""A fleet of nodes that differ, the same each time, registered and heard at one stroke."""

import random
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import text

from db.access.token_changes import MAX_NODES, create_token
from db.core.database import Database
from db.core.enums import Role
from db.core.identity import Caller, Identity
from db.retention.partitions import make_days

_CALLER = Caller(Identity("bench", Role.ADMIN))

LABELS = ("gpu", "eu", "us", "spot", "edge", "trusted")
MODELS = ("llama3:8b", "llama3:70b", "qwen2.5:32b", "mistral:7b", "phi4", "gemma2:27b")

_INSERT = text("""
WITH said AS (
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
    FROM said
    RETURNING id, node_id, status
), beat AS (
    INSERT INTO heartbeat_log (timestamp, node_id, status, metrics)
    SELECT now(), node.id, node.status, CAST(said.metrics AS jsonb)
    FROM node JOIN said USING (node_id)
    RETURNING id, node_id
), change AS (
    INSERT INTO status_changes (revision, node_id, status, reason, actor, changed_at)
    SELECT s.revision + row_number() OVER (), node.id, node.status, 'registered', 'bench', now()
    FROM node, registry_state s
    RETURNING revision
)
SELECT node_id, id FROM beat
""")
_SET_LAST_HEARTBEAT = text("""
UPDATE nodes SET last_heartbeat_id = b.beat
FROM unnest(CAST(:nodes AS uuid[]), CAST(:beats AS bigint[])) AS b (node, beat) WHERE id = b.node
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
# As autovacuum does within a minute: a fleet that was written at one stroke fills its pages.
_ANALYZE = text("VACUUM ANALYZE")


def format_node_id(number: int) -> str:
    return f"node-{number:05}"


async def insert_nodes(database: Database, count: int, *, first: int = 0) -> None:
    """So many nodes, each with a heartbeat just now, a profile and one of its role's."""
    chance = random.Random(1)  # noqa: S311  # the same fleet each time
    fleet = [_generate_node(chance, number) for number in range(first, first + count)]
    columns = {name: [node[name] for node in fleet] for name in fleet[0]}
    async with database.write() as session:
        await make_days(session)
        beats = (await session.execute(_INSERT, columns)).all()
        terms = {"nodes": [node for node, _ in beats], "beats": [beat for _, beat in beats]}
        await session.execute(_SET_LAST_HEARTBEAT, terms)
        for statement in (_SET_REVISION, _PROFILES, _ROLE_PROFILES):
            await session.execute(statement)
    async with database.read() as session:
        await session.execute(_ANALYZE)


async def create_agent_tokens(database: Database, count: int) -> dict[str, str]:
    """By the ids of the nodes that `settle` made: each key is for as many as one may be for."""
    node_ids = [format_node_id(number) for number in range(count)]
    keys: dict[str, str] = {}
    async with database.write() as session:
        for first in range(0, count, MAX_NODES):
            nodes = node_ids[first : first + MAX_NODES]
            made = await create_token(
                session, role=Role.AGENT, nodes=nodes, lifetime=timedelta(days=1), caller=_CALLER
            )
            keys |= dict.fromkeys(nodes, made.text)
    return keys


def _generate_node(chance: random.Random, number: int) -> dict[str, str]:
    """As the columns of `_INSERT` have it."""
    models = chance.sample(MODELS, chance.randint(0, 3))
    gpus = [
        {
            "name": "RTX 4000 Ada",
            "utilization_percent": chance.uniform(0, 100),
            "memory_total_mb": 20475,
            "memory_free_mb": chance.uniform(0, 20475),
        }
        for _ in range(chance.choice((0, 1, 1, 2)))
    ]
    capabilities: dict[str, Any] = {"models": models, "os": chance.choice(("linux", "macos"))}
    metrics = {
        "cpu_percent": chance.uniform(0, 100),
        "memory_percent": chance.uniform(0, 100),
        "memory_available_mb": chance.uniform(1000, 128000),
        "disk_percent": chance.uniform(0, 100),
        "load_average": chance.uniform(0, 16),
        "gpus": gpus,
    }
    return {
        "node_ids": format_node_id(number),
        "roles": chance.choice(("production", "production", "development", "backup")),
        "types": chance.choice(("worker", "worker", "worker", "gateway", "router")),
        "statuses": chance.choices(("online", "degraded", "offline"), (90, 5, 5))[0],
        "labels": ",".join(chance.sample(LABELS, chance.randint(1, 3))),
        "capabilities": orjson.dumps(capabilities).decode(),
        "metrics": orjson.dumps(metrics).decode(),
    }
