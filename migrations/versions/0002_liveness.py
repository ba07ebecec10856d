"""Add the process heartbeats, the lease floor, and since when a node has been steady."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UPGRADE = (
    # The time for every rule; a simulation sets node_registry.now for its own session.
    """
    CREATE FUNCTION registry_now() RETURNS timestamptz LANGUAGE sql STABLE
    RETURN coalesce(nullif(current_setting('node_registry.now', true), '')::timestamptz, now())
    """,
    """
    CREATE TABLE registry_processes (
        id uuid PRIMARY KEY,
        started_at timestamptz NOT NULL DEFAULT now(),
        seen_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "ALTER TABLE registry_state ADD COLUMN lease_floor timestamptz NOT NULL DEFAULT now()",
    "ALTER TABLE nodes ADD COLUMN steady_since timestamptz",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE nodes DROP COLUMN steady_since")
    op.execute("ALTER TABLE registry_state DROP COLUMN lease_floor")
    op.execute("DROP TABLE registry_processes")
    op.execute("DROP FUNCTION registry_now()")
