"""The revisions of the database schema, and Alembic's environment that runs them."""
