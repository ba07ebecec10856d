"""The statements that are sent to the database."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from asyncpg.connection import LoggedQuery
from sqlalchemy import event

from db.core.database import Database

# The driver's own: the ends of transactions, and questions about types.
_UNCOUNTED = re.compile(r"BEGIN;|COMMIT;|ROLLBACK;|.*(pg_catalog|'jit')", re.DOTALL)


@contextmanager
def record_statements(database: Database) -> Iterator[list[str]]:
    """The SQL that is sent meanwhile, through SQLAlchemy or by the driver itself."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    def note_directly(query: LoggedQuery) -> None:
        if not _UNCOUNTED.match(query.query):
            sent.append(query.query)

    taken = set[Any]()

    def listen_in(connection: Any, *_: Any) -> None:
        taken.add(connection.driver_connection)
        connection.driver_connection.add_query_logger(note_directly)

    engine = database.engine.sync_engine
    listeners: dict[str, Any] = {"before_cursor_execute": note, "checkout": listen_in}
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield sent
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)
        for connection in taken:
            connection.remove_query_logger(note_directly)
