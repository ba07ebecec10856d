"""Alembic's entry point: it runs the revisions on the connection that db.core.migrate passes."""

from alembic import context

from db.core.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
