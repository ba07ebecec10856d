"""The migration that gives actors their kinds."""

import runpy
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from db.core.migrate import migrate
from tests.support.paths import ROOT

DOWNGRADE: tuple[str, ...] = runpy.run_path(
    str(ROOT / "migrations/versions/0008_actors_and_addresses.py")
)["DOWNGRADE"]
BEFORE, AFTER = "0007", "0008"

NODES = """
INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason)
SELECT n, n, 'production', 'worker', 'online', 'registered'
FROM unnest(ARRAY['gpu-1', 'alice', 'registry', 'anonymous']) AS n
"""
TOKENS = """
INSERT INTO tokens (public_id, secret_hash, name, role, nodes, created_by, enrolled_by) VALUES
    ('1', '', 'root', 'admin', '{}', 'ada at the command line', NULL),
    ('2', '', 'alice', 'operator', '{}', 'root', NULL),
    ('3', '', 'gpu-1', 'agent', '{gpu-1}', 'rack', gen_random_uuid()),
    ('4', '', 'alice', 'agent', '{alice}', 'rack', gen_random_uuid()),
    ('5', '', 'registry', 'agent', '{registry}', 'jwt/ada', gen_random_uuid()),
    ('6', '', 'anonymous', 'agent', '{anonymous}', 'anonymous', gen_random_uuid())
"""
CHANGE = """
INSERT INTO status_changes (revision, node_id, status, reason, actor, changed_at)
SELECT 2 + n, nodes.id, 'online', reason, actor, now()
FROM unnest(CAST(:n AS bigint[]), CAST(:node AS text[]), CAST(:reason AS text[]),
            CAST(:actor AS text[])) AS c (n, node, reason, actor)
JOIN nodes ON nodes.node_id = c.node
"""
ENTRY = """
INSERT INTO audit_log (actor, action, subject, before, after)
SELECT actor, action, subject, CAST(document AS jsonb), CAST(document AS jsonb)
FROM unnest(CAST(:actor AS text[]), CAST(:action AS text[]), CAST(:subject AS text[]),
            CAST(:document AS text[])) WITH ORDINALITY AS e (actor, action, subject, document, n)
ORDER BY n
"""
# Node, reason, actor before, actor after.
CHANGES = [
    ("gpu-1", "registered", "rack", "token/rack"),
    ("gpu-1", "heartbeat", "gpu-1", "node/gpu-1"),
    ("gpu-1", "heartbeat", "jwt/gpu-1", "jwt/gpu-1"),
    ("gpu-1", "heartbeat", "tls/gpu-1", "tls/gpu-1"),
    ("gpu-1", "heartbeat", "anonymous", "system/anonymous"),
    ("gpu-1", "maintenance_started", "alice", "token/alice"),
    ("gpu-1", "missed_heartbeats", "registry", "system/registry"),
    ("gpu-1", "maintenance_started", "nobody", "token/nobody"),
    ("gpu-1", "maintenance_started", "ada at the command line", "system/cli/ada"),
    ("gpu-1", "maintenance_started", "system/registry", "token/system/registry"),
    ("alice", "registered", "alice", "node/alice"),
    ("registry", "heartbeat", "registry", "node/registry"),
    ("registry", "missed_heartbeats", "registry", "system/registry"),
    ("anonymous", "self_reported", "anonymous", "node/anonymous"),
]
# Action, subject, actor before, actor after.
ENTRIES = [
    ("node.register", "alice", "alice", "node/alice"),
    ("node.set_maintenance", "gpu-1", "alice", "token/alice"),
    ("node.register", "gpu-1", "gpu-1", "node/gpu-1"),
    ("token.rotate", "3", "gpu-1", "node/gpu-1"),
    ("profile.set", "a/llm", "anonymous", "system/anonymous"),
    ("profile.set", "a/llm", "purged", "token/purged"),
    ("node.register", "gone", "gone", "node/gone"),
    ("token.create", "x", "ada at the command line", "system/cli/ada"),
]
PURGED = '{"name": "gone", "enrolled_by": "7f", "created_by": "ada at the command line"}'


@pytest.fixture
async def engine(empty_database_url: URL) -> Any:
    engine = create_async_engine(empty_database_url)
    await migrate(engine, BEFORE)
    yield engine
    await engine.dispose()


async def fetch(engine: AsyncEngine, sql: str) -> list[Any]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(sql))]


async def insert_legacy_rows(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(NODES))
        await connection.execute(text(TOKENS))
        columns = list(zip(*CHANGES, strict=True))
        changes = {"n": list(range(1, len(CHANGES) + 1)), "node": columns[0]}
        changes |= {"reason": columns[1], "actor": columns[2]}
        await connection.execute(text(CHANGE), {name: list(v) for name, v in changes.items()})
        action, subject, actor, _ = map(list, zip(*ENTRIES, strict=True))
        document = [PURGED if name.startswith("token.create") else None for name in action]
        entries = {"actor": actor, "action": action, "subject": subject, "document": document}
        await connection.execute(text(ENTRY), entries)


ACTORS = (
    "SELECT actor FROM status_changes WHERE revision > 2 ORDER BY revision",
    "SELECT actor FROM audit_log ORDER BY id",
    "SELECT created_by FROM tokens ORDER BY public_id",
    "SELECT before ->> 'created_by', after ->> 'created_by' FROM audit_log WHERE after IS NOT NULL",
)


async def test_actors_of_the_version_before_get_their_kinds(engine: AsyncEngine) -> None:
    await insert_legacy_rows(engine)
    await migrate(engine, AFTER)
    assert [await fetch(engine, sql) for sql in ACTORS] == [
        [(change[3],) for change in CHANGES],
        [(entry[3],) for entry in ENTRIES],
        [
            ("system/cli/ada",),
            ("token/root",),
            ("token/rack",),
            ("token/rack",),
            ("jwt/ada",),
            ("node/anonymous",),
        ],
        [("system/cli/ada", "system/cli/ada")],
    ]
    assert await fetch(engine, "SELECT actor FROM status_changes WHERE revision <= 2") == [
        ("system/registry",),
        ("system/registry",),
    ]


async def test_the_way_down_leaves_names_without_kinds(engine: AsyncEngine) -> None:
    await insert_legacy_rows(engine)
    before = [await fetch(engine, sql) for sql in ACTORS]
    await migrate(engine, AFTER)
    async with engine.begin() as connection:
        for statement in DOWNGRADE:
            await connection.execute(text(statement))
    assert [await fetch(engine, sql) for sql in ACTORS] == before
