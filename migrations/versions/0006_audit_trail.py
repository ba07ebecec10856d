"""The audit trail says from where and how it ended; only its owner may do more than add to it."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UPGRADE = (
    "ALTER TABLE audit_log ADD COLUMN address text",
    "ALTER TABLE audit_log ADD COLUMN outcome text NOT NULL DEFAULT 'ok'",
    "ALTER TABLE audit_log ADD COLUMN request_id text",
    """
    UPDATE audit_log
    SET action = CASE action WHEN 'profile.deleted' THEN 'profile.delete' ELSE 'profile.set' END
    """,
    "DROP INDEX audit_log_subject_id_idx",
    "CREATE INDEX audit_log_recorded_at_id_idx ON audit_log (recorded_at, id)",
    "CREATE INDEX audit_log_actor_recorded_at_id_idx ON audit_log (actor, recorded_at, id)",
    "CREATE INDEX audit_log_action_recorded_at_id_idx ON audit_log (action, recorded_at, id)",
    "CREATE INDEX audit_log_subject_recorded_at_id_idx ON audit_log (subject, recorded_at, id)",
    """
    CREATE INDEX audit_log_refused_idx ON audit_log (outcome, recorded_at, id)
    WHERE outcome <> 'ok'
    """,
    # With its owner's rights, for a role that has none but to add: what it may drop is old.
    """
    DO $$ BEGIN EXECUTE format($create$
        CREATE FUNCTION trim_audit_log(cutoff timestamptz, batch int) RETURNS bigint
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, %I, pg_temp
        AS $function$
        DECLARE
            dropped bigint;
        BEGIN
            IF cutoff IS NULL OR cutoff > now() - interval '7 days' THEN
                RAISE insufficient_privilege USING
                    MESSAGE = 'the audit trail of the last seven days cannot be dropped';
            END IF;
            DELETE FROM audit_log WHERE id IN (
                SELECT id FROM audit_log WHERE recorded_at < cutoff
                ORDER BY recorded_at, id LIMIT batch
            );
            GET DIAGNOSTICS dropped = ROW_COUNT;
            RETURN dropped;
        END
        $function$
    $create$, current_schema()); END $$
    """,
    "REVOKE ALL ON FUNCTION trim_audit_log(timestamptz, int) FROM PUBLIC",
    """
    DO $$ DECLARE
        grantee oid;
    BEGIN
        FOR grantee IN
            SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.oid = 'audit_log'::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format(
                'REVOKE UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON audit_log FROM %s CASCADE',
                CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            );
        END LOOP;
    END $$
    """,
)

DOWNGRADE = (
    "DROP FUNCTION trim_audit_log(timestamptz, int)",
    """
    DROP INDEX audit_log_recorded_at_id_idx, audit_log_actor_recorded_at_id_idx,
               audit_log_action_recorded_at_id_idx, audit_log_subject_recorded_at_id_idx,
               audit_log_refused_idx
    """,
    "CREATE INDEX audit_log_subject_id_idx ON audit_log (subject, id)",
    "ALTER TABLE audit_log DROP COLUMN address, DROP COLUMN outcome, DROP COLUMN request_id",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
