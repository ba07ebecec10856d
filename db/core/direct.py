"""Statements that the driver executes itself: SQLAlchemy's way to it takes longer than some do."""

from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
from sqlalchemy import Enum, Row, Select, TextualSelect
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData


class Direct:
    """A statement that is compiled once. Its parameters are values as the driver takes them."""

    def __init__(self, statement: Select[*tuple[Any, ...]] | TextualSelect) -> None:
        compiled = statement.compile(dialect=PGDialect_asyncpg())  # type: ignore[no-untyped-call]
        columns = statement.selected_columns
        self._sql = str(compiled)
        self._parameters = compiled.positiontup or []
        self._keys = SimpleResultMetaData([column.key or "" for column in columns])
        # All else the driver has made of it already.
        self._enums = [
            (place, column.type.enum_class)
            for place, column in enumerate(columns)
            if isinstance(column.type, Enum) and column.type.enum_class
        ]

    async def fetch(
        self, connection: asyncpg.Connection, **parameters: object
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """The rows, as SQLAlchemy would have them. Raises asyncpg's errors."""
        given = [parameters[name] for name in self._parameters]
        records = await connection.fetch(self._sql, *given)
        return IteratorResult(self._keys, self._made(records)).all()

    def _made(self, records: Sequence[asyncpg.Record]) -> Iterator[Sequence[Any]]:
        for record in records:
            values = list(record)
            for place, enum in self._enums:
                if values[place] is not None:
                    values[place] = enum(values[place])
            yield values
