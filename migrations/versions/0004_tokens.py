"""Create the tokens, enrolment tokens included: their hashes and what they permit."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UPGRADE = (
    """
    CREATE TABLE tokens (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        public_id text NOT NULL UNIQUE,
        secret_hash bytea NOT NULL,
        name text NOT NULL,
        role varchar(20) NOT NULL CONSTRAINT tokens_role_check
            CHECK (role IN ('agent', 'router', 'viewer', 'operator', 'admin', 'enrolment')),
        nodes text[] NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT now(),
        created_by text NOT NULL,
        expires_at timestamptz,
        revoked_at timestamptz,
        last_used_at timestamptz,
        lifetime interval,
        replaces uuid,
        enrolled_by uuid,
        uses_left integer CONSTRAINT tokens_uses_left_check CHECK (uses_left >= 0),
        node_role varchar(20) CONSTRAINT tokens_node_role_check
            CHECK (node_role IN ('production', 'development', 'backup')),
        node_type varchar(20) CONSTRAINT tokens_node_type_check
            CHECK (node_type IN ('router', 'gateway', 'worker')),
        labels text[]
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX tokens_nodes_idx ON tokens USING gin (nodes)",
    "CREATE INDEX tokens_replaces_idx ON tokens (replaces)",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE tokens")
