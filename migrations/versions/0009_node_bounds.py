"""Bind the tokens of enrolled nodes to what their enrolment tokens allow.

A token whose enrolment token is no longer stored stays unbound.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
    UPDATE tokens t SET node_role = e.node_role, node_type = e.node_type, labels = e.labels
    FROM tokens e
    WHERE e.id = t.enrolled_by AND t.role = 'agent' AND e.role = 'enrolment'
    """)


def downgrade() -> None:
    op.execute("""
    UPDATE tokens SET node_role = NULL, node_type = NULL, labels = NULL WHERE role = 'agent'
    """)
