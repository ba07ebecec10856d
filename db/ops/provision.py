"""Provisioning a database with two roles: its owner, and the service with fewer privileges.

PostgreSQL is never sent a password but its SCRAM verifier: its log may have every statement.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from db.core.migrate import migrate

_SCRAM_ITERATIONS = 4096  # PostgreSQL's own default


class ProvisioningRejected(Exception):
    """An existing database or role is not as it must be. The message is one line that says why."""


@dataclass(frozen=True, slots=True)
class ProvisionedNames:
    """The names of a database, of the role that migrates it and of the role that serves."""

    database: str
    owner: str
    service: str


async def provision(
    administrator: URL,
    names: ProvisionedNames,
    *,
    new_passwords: bool,
    store_passwords: Callable[[Mapping[str, str]], None],
) -> bool:
    """Make the missing roles and database, migrate it as its owner, and return whether it is new.

    `store_passwords` receives the password by the name of each role that is made, with
    `new_passwords` of both, before they take effect; if it raises, nothing has changed. The
    administrator needs CREATEROLE and CREATEDB, and becomes a member of the owner. Raises:
    ProvisioningRejected. DBAPIError: PostgreSQL rejects a statement.
    """
    async with _open_connection(administrator) as connection, connection.begin():
        store_passwords(await _make_roles(connection, names, renew=new_passwords))
    async with _open_connection(administrator, isolation_level="AUTOCOMMIT") as connection:
        is_new = await _make_database(connection, names)
    target = administrator.set(database=names.database)
    async with _open_connection(target) as connection, connection.begin():
        await _run_statements(connection, names, *_GRANT_FUTURE_PRIVILEGES)
    owner = _create_engine(target, connect_args={"server_settings": {"role": names.owner}})
    await migrate(owner)
    async with owner.begin() as connection:
        await _run_statements(connection, names, *_GRANT_PRIVILEGES)
        if await _query_scalar(connection, _HAS_EXCESS_PRIVILEGES, service=names.service):
            raise ProvisioningRejected(
                f"the role {names.service!r} has privileges from elsewhere: it could make tables"
                " or change the audit trail"
            )
    return is_new


async def _make_roles(
    connection: AsyncConnection, names: ProvisionedNames, *, renew: bool
) -> dict[str, str]:
    passwords = {}
    for role in ("owner", "service"):
        name = asdict(names)[role]
        exists = await _query_scalar(
            connection, "SELECT true FROM pg_roles WHERE rolname = :name", name=name
        )
        if renew or not exists:
            passwords[name] = secrets.token_urlsafe(32)
            statement = f"{'ALTER' if exists else 'CREATE'} ROLE {{{role}}} LOGIN PASSWORD "
            await _run_statements(
                connection, names, f"{statement} '{_make_scram_verifier(passwords[name])}'"
            )
    # A superuser can act as any role.
    if not await _query_scalar(
        connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    ):
        await _run_statements(connection, names, "GRANT {owner} TO CURRENT_USER")
    if await _query_scalar(
        connection, _HAS_EXCESS_ATTRIBUTES, owner=names.owner, service=names.service
    ):
        raise ProvisioningRejected(
            f"the role {names.service!r} has more privileges than a service should: name another"
        )
    return passwords


_HAS_EXCESS_ATTRIBUTES = """
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
       OR pg_has_role(rolname, :owner, 'MEMBER')
FROM pg_roles WHERE rolname = :service
"""


async def _make_database(connection: AsyncConnection, names: ProvisionedNames) -> bool:
    owner = await _query_scalar(
        connection,
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = :database",
        database=names.database,
    )
    if owner is None:
        statement = "CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'"
        await _run_statements(connection, names, statement)
    elif owner != names.owner:
        raise ProvisioningRejected(
            f"the database {names.database!r} belongs to the role {owner!r}: name it as the owner"
        )
    return owner is None


# For everything that migrations make, now and later.
_GRANT_FUTURE_PRIVILEGES = (
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "GRANT CONNECT ON DATABASE {database} TO {service}",
    "REVOKE ALL ON SCHEMA public FROM PUBLIC",
    "GRANT ALL ON SCHEMA public TO {owner}",
    "GRANT USAGE ON SCHEMA public TO {service}",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE ALL ON FUNCTIONS FROM PUBLIC",
    """
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {service}
    """,
    """
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public
    GRANT EXECUTE ON FUNCTIONS TO {service}
    """,
)

# For what exists: the database may be older than its roles.
_GRANT_PRIVILEGES = (
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC",
    "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC",
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {service}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {service}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {service}",
    "REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {service}",
    "REVOKE UPDATE, DELETE ON audit_log FROM {service}",
)

_HAS_EXCESS_PRIVILEGES = """
SELECT has_schema_privilege(:service, 'public', 'CREATE')
       OR has_database_privilege(:service, current_database(), 'CREATE, TEMPORARY')
       OR has_table_privilege(:service, 'audit_log', 'UPDATE, DELETE, TRUNCATE, TRIGGER')
       OR has_table_privilege(:service, 'alembic_version', 'INSERT, UPDATE, DELETE, TRUNCATE')
"""


@asynccontextmanager
async def _open_connection(url: URL, **options: Any) -> AsyncIterator[AsyncConnection]:
    async with _create_engine(url, **options).connect() as connection:
        yield connection


def _create_engine(url: URL, **options: Any) -> AsyncEngine:
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg"), poolclass=NullPool, **options
    )


async def _query_scalar(connection: AsyncConnection, query: str, **values: str) -> Any:
    return (await connection.execute(text(query), values)).scalar()


async def _run_statements(
    connection: AsyncConnection, names: ProvisionedNames, *statements: str
) -> None:
    """Run the statements with the quoted names filled in."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    quoted = {role: quote(name) for role, name in asdict(names).items()}
    for statement in statements:
        await connection.exec_driver_sql(statement.format(**quoted))


def _make_scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores of a password: RFC 5803's format, as pg_authid documents it."""
    salt = secrets.token_bytes(16)
    salted_password = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted_password, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted_password, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
