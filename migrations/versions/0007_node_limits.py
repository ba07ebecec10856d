"""Count what each node has had written, and count repetitions in the audit log."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

UPGRADE = (
    # Behind all columns that a heartbeat leaves alone, and without an index: its update stays HOT.
    "ALTER TABLE nodes ADD COLUMN heartbeats_paid_until timestamptz",
    "ALTER TABLE nodes ADD COLUMN changes_paid_until timestamptz",
    "ALTER TABLE nodes ADD COLUMN written_on date",
    "ALTER TABLE nodes ADD COLUMN written_bytes bigint NOT NULL DEFAULT 0",
    "ALTER TABLE audit_log ADD COLUMN count bigint NOT NULL DEFAULT 1",
    "ALTER TABLE audit_log ADD COLUMN last_recorded_at timestamptz",
    "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)",
    # The service may not update the log. It may count one more of what it could insert again, and
    # of nothing that is older than an hour.
    """
    CREATE FUNCTION repeat_audit_entry(entry bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
    BEGIN
        UPDATE audit_log SET count = count + 1, last_recorded_at = now()
        WHERE id = entry AND recorded_at > now() - interval '1 hour';
        RETURN FOUND;
    END
    $$
    """,
    "REVOKE ALL ON FUNCTION repeat_audit_entry(bigint) FROM PUBLIC",
)

DOWNGRADE = (
    "DROP FUNCTION repeat_audit_entry(bigint)",
    "ALTER TABLE audit_log DROP COLUMN count, DROP COLUMN last_recorded_at",
    "ALTER TABLE nodes DROP COLUMN heartbeats_paid_until, DROP COLUMN changes_paid_until",
    "ALTER TABLE nodes DROP COLUMN written_on, DROP COLUMN written_bytes",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
