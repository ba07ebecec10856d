"""Store actors with their kinds, and the address of the direct connection of audited requests."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# What is known of each name that acted: whether enrolment issued a token of this name to a node,
# and whether somebody else had a token of this name. The audit log knows purged tokens.
NAMES = """
CREATE TEMPORARY TABLE acting_names ON COMMIT DROP AS
SELECT name, bool_or(enrolled) AS enrolled, bool_or(NOT enrolled) AS held
FROM (
    SELECT name, enrolled_by IS NOT NULL FROM tokens
    UNION ALL
    SELECT after ->> 'name', after ->> 'enrolled_by' IS NOT NULL FROM audit_log
    WHERE action IN ('token.create', 'token.rotate') AND after IS NOT NULL
) AS t (name, enrolled)
GROUP BY name
"""

REGISTRY_REASONS = (
    "('missed_heartbeats', 'flapping', 'maintenance_ended', 'deregistered', 'seeded')"
)


def qualify(actor: str, node_id: str, *, is_registry: str = "false") -> str:
    """Return the SQL of an actor with its kind, where `n` is its row of `acting_names`, if any.

    A name of which both a node and a person had tokens is the node's in what it did to itself.
    """
    return f"""CASE
        WHEN {actor} ~ '^(jwt|tls)/' THEN {actor}
        WHEN {actor} = 'registry' AND {is_registry} THEN 'system/registry'
        WHEN n.enrolled AND {actor} = {node_id} THEN 'node/' || {actor}
        WHEN n.held THEN 'token/' || {actor}
        WHEN {actor} IN ('anonymous', 'registry') THEN 'system/' || {actor}
        WHEN {actor} LIKE '% at the command line'
        THEN 'system/cli/' || regexp_replace({actor}, ' at the command line$', '')
        WHEN n.enrolled THEN 'node/' || {actor}
        ELSE 'token/' || {actor}
    END"""


UPGRADE = (
    "ALTER TABLE audit_log ADD COLUMN peer_address text",
    NAMES,
    f"""
    UPDATE status_changes c
    SET actor = {qualify("c.actor", "d.node_id", is_registry=f"c.reason IN {REGISTRY_REASONS}")}
    FROM nodes d, status_changes s LEFT JOIN acting_names n ON n.name = s.actor
    WHERE d.id = s.node_id AND s.revision = c.revision
    """,  # noqa: S608  # constants only
    f"""
    UPDATE audit_log a SET actor = {qualify("a.actor", "a.subject")}
    FROM audit_log s LEFT JOIN acting_names n ON n.name = s.actor
    WHERE s.id = a.id
    """,  # noqa: S608  # constants only
    f"""
    UPDATE tokens t SET created_by = {qualify("t.created_by", "t.name")}
    FROM tokens s LEFT JOIN acting_names n ON n.name = s.created_by
    WHERE s.id = t.id
    """,  # noqa: S608  # constants only
    *(
        f"""
        UPDATE audit_log a
        SET {column} = jsonb_set(a.{column}, '{{created_by}}', to_jsonb(
            {qualify(f"(a.{column} ->> 'created_by')", f"(a.{column} ->> 'name')")}
        ))
        FROM audit_log s LEFT JOIN acting_names n ON n.name = s.{column} ->> 'created_by'
        WHERE s.id = a.id AND s.action LIKE 'token.%' AND s.{column} ->> 'created_by' IS NOT NULL
        """  # noqa: S608  # constants only
        for column in ("before", "after")
    ),
)

UNQUALIFY = r"""
regexp_replace(
    regexp_replace({actor}, '^system/cli/(.*)$', '\1 at the command line'),
    '^(token|node|system)/', ''
)
"""

DOWNGRADE = (
    *(
        f"UPDATE {table} SET {column} = {UNQUALIFY.format(actor=column)}"  # noqa: S608  # constants only
        for table, column in (
            ("status_changes", "actor"),
            ("audit_log", "actor"),
            ("tokens", "created_by"),
        )
    ),
    *(
        f"""
        UPDATE audit_log SET {column} = jsonb_set({column}, '{{created_by}}', to_jsonb(
            {UNQUALIFY.format(actor=f"({column} ->> 'created_by')")}
        ))
        WHERE action LIKE 'token.%' AND {column} ->> 'created_by' IS NOT NULL
        """  # noqa: S608  # constants only
        for column in ("before", "after")
    ),
    "ALTER TABLE audit_log DROP COLUMN peer_address",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
