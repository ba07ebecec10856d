"""Makes a database whose service may not do what its owner may: two roles, and the rights of each.

PostgreSQL is never sent a password, only what it keeps of one: its log may have every statement.
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

_SCRAM_ITERATIONS = 4096  # as PostgreSQL itself has it


class ProvisioningRefused(Exception):
    """What is there already is not as it has to be; the message is one line that says what."""


@dataclass(frozen=True, slots=True)
class Names:
    """`owner` is the role that migrates, `service` the one that serves."""

    database: str
    owner: str
    service: str


async def provision(
    administrator: URL,
    names: Names,
    *,
    new_passwords: bool,
    keep: Callable[[Mapping[str, str]], None],
) -> bool:
    """Makes what is missing, the schema too, as its owner; says whether the database is new.

    `keep` gets the password of each role that is made, of both with `new_passwords`, before they
    count; if it raises, nothing was done. The administrator needs CREATEROLE and CREATEDB, and
    becomes a member of the owner. Raises ProvisioningRefused, and DBAPIError for what PostgreSQL
    refuses.
    """
    async with _connected(administrator) as connection, connection.begin():
        keep(await _make_roles(connection, names, renew=new_passwords))
    async with _connected(administrator, isolation_level="AUTOCOMMIT") as connection:
        made = await _make_database(connection, names)
    inside = administrator.set(database=names.database)
    async with _connected(inside) as connection, connection.begin():
        await _run(connection, names, *_RIGHTS_TO_COME)
    owner = _engine(inside, connect_args={"server_settings": {"role": names.owner}})
    await migrate(owner)
    async with owner.begin() as connection:
        await _run(connection, names, *_RIGHTS)
        if await _ask(connection, _STILL_MIGHTY, service=names.service):
            raise ProvisioningRefused(
                f"the role {names.service!r} has rights from elsewhere: it could make tables, or"
                " change the audit trail"
            )
    return made


async def _make_roles(connection: AsyncConnection, names: Names, *, renew: bool) -> dict[str, str]:
    passwords = {}
    for role in ("owner", "service"):
        name = asdict(names)[role]
        known = await _ask(connection, "SELECT true FROM pg_roles WHERE rolname = :name", name=name)
        if renew or not known:
            passwords[name] = secrets.token_urlsafe(32)
            statement = f"{'ALTER' if known else 'CREATE'} ROLE {{{role}}} LOGIN PASSWORD "
            await _run(connection, names, f"{statement} '{_verifier(passwords[name])}'")
    # A superuser may do as any role does.
    if not await _ask(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        await _run(connection, names, "GRANT {owner} TO CURRENT_USER")
    if await _ask(connection, _MIGHTY, owner=names.owner, service=names.service):
        raise ProvisioningRefused(
            f"the role {names.service!r} may do more than a service should: name another one"
        )
    return passwords


_MIGHTY = """
SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
       OR pg_has_role(rolname, :owner, 'MEMBER')
FROM pg_roles WHERE rolname = :service
"""


async def _make_database(connection: AsyncConnection, names: Names) -> bool:
    owner = await _ask(
        connection,
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = :database",
        database=names.database,
    )
    if owner is None:
        statement = "CREATE DATABASE {database} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'"
        await _run(connection, names, statement)
    elif owner != names.owner:
        raise ProvisioningRefused(
            f"the database {names.database!r} belongs to the role {owner!r}: name it as the owner"
        )
    return owner is None


# Of what migrations make, now and later.
_RIGHTS_TO_COME = (
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

# Of what is there: the database may be older than its roles.
_RIGHTS = (
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC",
    "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC",
    "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {service}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {service}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {service}",
    "REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {service}",
    "REVOKE UPDATE, DELETE ON audit_log FROM {service}",
)

_STILL_MIGHTY = """
SELECT has_schema_privilege(:service, 'public', 'CREATE')
       OR has_database_privilege(:service, current_database(), 'CREATE, TEMPORARY')
       OR has_table_privilege(:service, 'audit_log', 'UPDATE, DELETE, TRUNCATE, TRIGGER')
       OR has_table_privilege(:service, 'alembic_version', 'INSERT, UPDATE, DELETE, TRUNCATE')
"""


@asynccontextmanager
async def _connected(url: URL, **options: Any) -> AsyncIterator[AsyncConnection]:
    async with _engine(url, **options).connect() as connection:
        yield connection


def _engine(url: URL, **options: Any) -> AsyncEngine:
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg"), poolclass=NullPool, **options
    )


async def _ask(connection: AsyncConnection, question: str, **values: str) -> Any:
    return (await connection.execute(text(question), values)).scalar()


async def _run(connection: AsyncConnection, names: Names, *statements: str) -> None:
    """With the names filled in, quoted."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    quoted = {role: quote(name) for role, name in asdict(names).items()}
    for statement in statements:
        await connection.exec_driver_sql(statement.format(**quoted))


def _verifier(password: str) -> str:
    """What PostgreSQL keeps of it: RFC 5803's format, as in its documentation of pg_authid."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    kept = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{kept[0]}${kept[1]}:{kept[2]}"
