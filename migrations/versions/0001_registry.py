"""Create nodes, profiles, the heartbeat log, the change log, and the two seeded nodes."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATUSES = "('online', 'degraded', 'offline', 'maintenance')"
REASONS = """('registered', 'heartbeat', 'self_reported', 'missed_heartbeats', 'flapping',
              'maintenance_started', 'maintenance_ended', 'deregistered', 'seeded')"""
ROLES = "('production', 'development', 'backup')"
TYPES = "('router', 'gateway', 'worker')"
PROFILE_TYPES = "('llm', 'service', 'capability')"

TABLES = f"""
CREATE TABLE nodes (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    node_id text NOT NULL,
    node_name text NOT NULL,
    node_role varchar(20) NOT NULL CONSTRAINT nodes_node_role_check CHECK (node_role IN {ROLES}),
    node_type varchar(20) NOT NULL CONSTRAINT nodes_node_type_check CHECK (node_type IN {TYPES}),
    ip_address inet,
    local_ip inet,
    hostname text,
    status varchar(20) NOT NULL CONSTRAINT nodes_status_check CHECK (status IN {STATUSES}),
    last_heartbeat timestamptz,
    registered_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    metadata jsonb NOT NULL DEFAULT '{{}}',
    labels text[] NOT NULL DEFAULT '{{}}',
    capabilities jsonb NOT NULL DEFAULT '{{}}',
    status_reason varchar(20) NOT NULL
        CONSTRAINT nodes_status_reason_check CHECK (status_reason IN {REASONS}),
    status_since timestamptz NOT NULL DEFAULT now(),
    maintenance_until timestamptz,
    removed_at timestamptz,
    boot_id text,
    boot_since timestamptz,
    heartbeat_interval_seconds double precision NOT NULL DEFAULT 0,
    reported_degraded boolean NOT NULL DEFAULT false,
    heard_at timestamptz,
    last_sequence bigint,
    last_heartbeat_id bigint
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX nodes_node_id_key ON nodes (node_id) WHERE removed_at IS NULL;
CREATE INDEX nodes_boot_id_idx ON nodes (boot_id) WHERE removed_at IS NULL;
CREATE INDEX nodes_labels_idx ON nodes USING gin (labels);
CREATE INDEX nodes_capabilities_idx ON nodes USING gin (capabilities jsonb_path_ops);

CREATE TABLE node_profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    node_id uuid NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    profile_name text NOT NULL,
    profile_type varchar(20) NOT NULL
        CONSTRAINT node_profiles_profile_type_check CHECK (profile_type IN {PROFILE_TYPES}),
    config jsonb NOT NULL DEFAULT '{{}}',
    enabled boolean NOT NULL DEFAULT true,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (node_id, profile_name)
);

CREATE TABLE role_profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    node_role varchar(20) NOT NULL
        CONSTRAINT role_profiles_node_role_check CHECK (node_role IN {ROLES}),
    node_type varchar(20) NOT NULL
        CONSTRAINT role_profiles_node_type_check CHECK (node_type IN {TYPES}),
    profile_name text NOT NULL,
    profile_type varchar(20) NOT NULL
        CONSTRAINT role_profiles_profile_type_check CHECK (profile_type IN {PROFILE_TYPES}),
    config jsonb NOT NULL DEFAULT '{{}}',
    enabled boolean NOT NULL DEFAULT true,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (node_role, node_type, profile_name)
);

CREATE TABLE heartbeat_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    timestamp timestamptz NOT NULL,
    node_id uuid NOT NULL,
    status varchar(20) NOT NULL
        CONSTRAINT heartbeat_log_status_check CHECK (status IN {STATUSES}),
    metrics jsonb NOT NULL DEFAULT '{{}}',
    PRIMARY KEY (id, timestamp)
) PARTITION BY RANGE (timestamp);
CREATE INDEX heartbeat_log_node_id_timestamp_id_idx ON heartbeat_log (node_id, timestamp, id);
CREATE TABLE heartbeat_log_default PARTITION OF heartbeat_log DEFAULT;

CREATE TABLE status_changes (
    revision bigint PRIMARY KEY,
    node_id uuid NOT NULL REFERENCES nodes (id),
    previous_status varchar(20)
        CONSTRAINT status_changes_previous_status_check CHECK (previous_status IN {STATUSES}),
    status varchar(20) NOT NULL CONSTRAINT status_changes_status_check CHECK (status IN {STATUSES}),
    reason varchar(20) NOT NULL CONSTRAINT status_changes_reason_check CHECK (reason IN {REASONS}),
    note text,
    actor text NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX status_changes_node_id_revision_idx ON status_changes (node_id, revision);

CREATE TABLE registry_state (
    id boolean PRIMARY KEY DEFAULT true CONSTRAINT registry_state_id_check CHECK (id),
    revision bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now(),
    mode varchar(20) NOT NULL DEFAULT 'normal'
        CONSTRAINT registry_state_mode_check CHECK (mode IN ('normal', 'protected')),
    mode_reason text,
    mode_since timestamptz NOT NULL DEFAULT now()
);
"""

KNOWN_NODES = """
INSERT INTO nodes (node_id, node_name, node_role, node_type, ip_address, local_ip, hostname,
                   status, status_reason)
VALUES ('node-1-hetzner-gex44', 'Hetzner GEX44 Production', 'production', 'router',
        '144.76.224.179', NULL, 'gateway.daarion.city', 'offline', 'seeded'),
       ('node-2-macbook-m4max', 'MacBook Pro M4 Max', 'development', 'router',
        NULL, '192.168.1.244', 'MacBook-Pro.local', 'offline', 'seeded');
INSERT INTO status_changes (revision, node_id, status, reason, actor, changed_at)
SELECT row_number() OVER (ORDER BY node_id), id, status, status_reason, 'registry', status_since
FROM nodes;
INSERT INTO registry_state (revision) SELECT count(*) FROM status_changes;
"""


def upgrade() -> None:
    for statement in (TABLES + KNOWN_NODES).split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute(
        "DROP TABLE registry_state, status_changes, heartbeat_log,"
        " role_profiles, node_profiles, nodes"
    )
