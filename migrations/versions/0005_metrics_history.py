"""Add hourly metrics, order the heartbeat log by time, and shrink the update of a node."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

MEASURES = (
    "cpu_percent",
    "memory_percent",
    "memory_available_mb",
    "disk_percent",
    "load_average",
    "gpu_utilization_percent",
    "gpu_memory_free_mb",
    "gpu_temperature_celsius",
)
RANGES = ", ".join(
    f"{measure}_{part} double precision" for measure in MEASURES for part in ("min", "avg", "max")
)

UPGRADE = (
    f"""
    CREATE TABLE metrics_history (
        node_id uuid NOT NULL,
        hour timestamptz NOT NULL,
        heartbeats integer NOT NULL,
        {RANGES},
        PRIMARY KEY (node_id, hour)
    ) PARTITION BY RANGE (hour)
    """,
    """
    CREATE TABLE rolled_up_hours (
        hour timestamptz PRIMARY KEY,
        heartbeats bigint NOT NULL
    )
    """,
    # With the timestamp first, the primary key finds the entries of an hour.
    "ALTER TABLE heartbeat_log DROP CONSTRAINT heartbeat_log_pkey",
    "ALTER TABLE heartbeat_log ADD CONSTRAINT heartbeat_log_pkey PRIMARY KEY (timestamp, id)",
    # The column stood before the wide ones, so the WAL of each heartbeat included all of those;
    # dropping and adding it moves it behind them.
    "ALTER TABLE nodes RENAME COLUMN last_heartbeat TO last_heartbeat_before",
    "ALTER TABLE nodes ADD COLUMN last_heartbeat timestamptz",
    "UPDATE nodes SET last_heartbeat = last_heartbeat_before",
    "ALTER TABLE nodes DROP COLUMN last_heartbeat_before",
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE heartbeat_log DROP CONSTRAINT heartbeat_log_pkey")
    op.execute(
        "ALTER TABLE heartbeat_log ADD CONSTRAINT heartbeat_log_pkey PRIMARY KEY (id, timestamp)"
    )
    op.execute("DROP TABLE rolled_up_hours")
    op.execute("DROP TABLE metrics_history")
