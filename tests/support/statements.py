"""The statements that are sent to the database."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncpg.connection import LoggedQuery
from sqlalchemy import event

from db.core.database import Database

# Statements of the driver itself: transaction control and type lookups.
_IGNORED = re.compile(r"BEGIN;|COMMIT;|ROLLBACK;|.*(pg_catalog|'jit')", re.DOTALL)


@contextmanager
def record_statements(database: Database) -> Iterator[list[str]]:
    """Yield a list to which each SQL statement is appended, of SQLAlchemy and of the driver."""
    sent: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    def record_driver_query(query: LoggedQuery) -> None:
        if not _IGNORED.match(query.query):
            sent.append(query.query)

    connections = set[Any]()

    def log_driver_queries(connection: Any, *_: Any) -> None:
        connections.add(connection.driver_connection)
        connection.driver_connection.add_query_logger(record_driver_query)

    engine = database.engine.sync_engine
    listeners: dict[str, Any] = {"before_cursor_execute": record, "checkout": log_driver_queries}
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield sent
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)
        for connection in connections:
            connection.remove_query_logger(record_driver_query)
