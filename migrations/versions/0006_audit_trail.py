"""Extend the audit log, and let a service that owns no table maintain partitions and the log."""

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
    """
    DO $$ DECLARE
        grantee oid;
    BEGIN
        FOR grantee IN
            SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.oid = 'audit_log'::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format(
                'REVOKE UPDATE, DELETE, TRUNCATE, TRIGGER ON audit_log FROM %s CASCADE',
                CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            );
        END LOOP;
    END $$
    """,
)

# The maintenance that needs the owner's rights, within limits, for a service that owns nothing.
# The search path is fixed, or a caller could substitute tables of its own.
FUNCTIONS = (
    "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true)",
    """
    CREATE FUNCTION trim_audit_log(cutoff timestamptz, batch int) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
    DECLARE
        dropped bigint;
    BEGIN
        IF cutoff IS NULL OR cutoff > now() - interval '7 days' THEN
            RAISE insufficient_privilege
            USING MESSAGE = 'the audit trail of the last seven days cannot be dropped';
        END IF;
        DELETE FROM audit_log WHERE id IN (
            SELECT id FROM audit_log WHERE recorded_at < cutoff
            ORDER BY recorded_at, id LIMIT batch
        );
        GET DIAGNOSTICS dropped = ROW_COUNT;
        RETURN dropped;
    END
    $$
    """,
    # Heartbeats of a day without a partition went to the default one. They move to the new one,
    # because PostgreSQL rejects the new partition while the default one holds rows of that day.
    """
    CREATE FUNCTION make_heartbeat_day(day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
    DECLARE
        name text := to_char(day, '"heartbeat_log_"YYYYMMDD');
        begins timestamptz := day::timestamp AT TIME ZONE 'UTC';
        ends timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
    BEGIN
        IF day IS NULL OR day > (now() AT TIME ZONE 'UTC')::date + 31 THEN
            RAISE insufficient_privilege
            USING MESSAGE = 'days are made for the past and the month ahead';
        END IF;
        IF to_regclass(name) IS NOT NULL THEN
            RETURN;
        END IF;
        EXECUTE format(
            'CREATE TABLE %I (LIKE heartbeat_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name
        );
        LOCK TABLE heartbeat_log_default;
        EXECUTE format(
            'WITH moved AS ('
            ' DELETE FROM heartbeat_log_default WHERE timestamp >= $1 AND timestamp < $2'
            ' RETURNING *'
            ') INSERT INTO %I SELECT * FROM moved', name
        ) USING begins, ends;
        EXECUTE format(
            'ALTER TABLE heartbeat_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            name, begins, ends
        );
    END
    $$
    """,
    """
    CREATE FUNCTION make_metrics_month(day date) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
    DECLARE
        name text := to_char(day, '"metrics_history_"YYYYMM');
        begins timestamp := date_trunc('month', day::timestamp);
    BEGIN
        IF day IS NULL OR day > (now() AT TIME ZONE 'UTC')::date + 31 THEN
            RAISE insufficient_privilege
            USING MESSAGE = 'months are made for the past and the month ahead';
        END IF;
        IF to_regclass(name) IS NOT NULL THEN
            RETURN;
        END IF;
        EXECUTE format(
            'CREATE TABLE %I (LIKE metrics_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name
        );
        EXECUTE format(
            'ALTER TABLE metrics_history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            name, begins AT TIME ZONE 'UTC', (begins + interval '1 month') AT TIME ZONE 'UTC'
        );
    END
    $$
    """,
    # PostgreSQL cannot detach concurrently from a table with a default partition, so this locks the
    # whole table. Heartbeats queue behind the lock, so it waits no longer than they may.
    r"""
    CREATE FUNCTION drop_partition(part regclass) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '100ms'
    AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE c.oid = part
              AND i.inhparent IN ('heartbeat_log'::regclass, 'metrics_history'::regclass)
              AND (regexp_match(
                  pg_get_expr(c.relpartbound, c.oid), $bound$TO \('(\d.*)'\)$bound$
              ))[1]::timestamptz <= now()
        ) THEN
            RAISE insufficient_privilege
            USING MESSAGE = 'only days and months that are over can be dropped';
        END IF;
        EXECUTE format('DROP TABLE %s', part);
    END
    $$
    """,
    "REVOKE ALL ON FUNCTION trim_audit_log(timestamptz, int) FROM PUBLIC",
    """
    REVOKE ALL ON FUNCTION
        make_heartbeat_day(date), make_metrics_month(date), drop_partition(regclass)
    FROM PUBLIC
    """,
)

DOWNGRADE = (
    "DROP FUNCTION drop_partition(regclass)",
    "DROP FUNCTION make_metrics_month(date), make_heartbeat_day(date)",
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
    for statement in (*UPGRADE, *FUNCTIONS):
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
