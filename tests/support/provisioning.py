"""Databases whose service role owns nothing, and statements run as their roles."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from db.core.database import Database
from db.ops.provision import ProvisionedNames, provision


@asynccontextmanager
async def open_administrator(url: URL) -> AsyncIterator[Any]:
    """Yield a function that runs a statement in its own transaction as the role of the URL."""
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:

            async def run(statement: str, **values: Any) -> list[tuple[Any, ...]]:
                result = await connection.execute(text(statement), values)
                return [tuple(row) for row in result] if result.returns_rows else []

            yield run
    finally:
        await engine.dispose()


def quote(name: str) -> str:
    """Return the name as a quoted SQL identifier; a colon would start a parameter."""
    assert ":" not in name
    return '"' + name.replace('"', '""') + '"'


@dataclass
class Provisioning:
    """Names of roles and a database for this test, and the passwords of the last run."""

    administrator: URL
    names: ProvisionedNames
    passwords: dict[str, str] = field(default_factory=dict)

    async def run(self, *, new_passwords: bool = False) -> bool:
        self.passwords = {}
        return await provision(
            self.administrator,
            self.names,
            new_passwords=new_passwords,
            store_passwords=self.passwords.update,
        )

    def url(self, role: str) -> URL:
        return self.administrator.set(database=self.names.database, username=role)

    @asynccontextmanager
    async def database(self, role: str) -> AsyncIterator[Database]:
        database = Database(self.url(role))
        try:
            yield database
        finally:
            await database.close()


@asynccontextmanager
async def reserve_names(postgres: URL) -> AsyncIterator[Provisioning]:
    """Yield names that are valid only if quoted, so that each test covers quoting."""
    odd = f"""O'Dagi "{secrets.token_hex(4)}" %s $1 {{}}"""
    names = ProvisionedNames(database=f"{odd} d", owner=f"{odd} o", service=f"{odd} s")
    try:
        yield Provisioning(postgres, names)
    finally:
        async with open_administrator(postgres) as run:
            await run(f"DROP DATABASE IF EXISTS {quote(names.database)} WITH (FORCE)")
            for role in (names.owner, names.service):
                await run(f"DROP ROLE IF EXISTS {quote(role)}")


@pytest.fixture
async def provisioning(postgres: URL) -> AsyncIterator[Provisioning]:
    async with reserve_names(postgres) as provisioning:
        yield provisioning
