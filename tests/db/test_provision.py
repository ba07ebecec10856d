"""A database whose service role owns nothing: its privileges and how it is provisioned."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from db.core.database import Database
from db.core.migrate import migrate
from db.ops.provision import ProvisioningRejected, provision
from db.retention import partitions
from graph.live.housekeeping import Housekeeping
from graph.telemetry.metrics import Metrics
from tests.support.api import CHANGES, DEREGISTER, MAINTENANCE, beat, register, wait_until_connected
from tests.support.fleet import fetch_rows
from tests.support.live_server import run_server
from tests.support.provisioning import (
    Provisioning,
    open_administrator,
    quote,
    reserve_names,
)
from tests.support.tokens import DAY
from tests.support.transport_ws import connect

SET_PROFILE = """
mutation Set($input: SetNodeProfileInput!) { setNodeProfile(input: $input) { __typename } }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def restricted(postgres: URL) -> AsyncIterator[Provisioning]:
    """Yield a provisioned database that the tests share and do not change."""
    async with reserve_names(postgres) as provisioning:
        await provisioning.run()
        yield provisioning


async def test_registry_works_as_a_role_that_owns_nothing(
    provisioning: Provisioning, tmp_path: Path
) -> None:
    await provisioning.run()
    async with (
        run_server(
            provisioning.url(provisioning.names.service),
            tmp_path,
            heartbeat_min_interval_seconds=0.2,
            heartbeat_grace_seconds=0.1,
            sweep_interval_seconds=0.05,
        ) as server,
        connect(server.websocket_url) as client,
    ):
        await wait_until_connected(server)
        await client.subscribe("1", CHANGES, after="2")
        profile = {"name": "llm", "type": "LLM", "config": {}}
        await register(server, "a", profiles=[profile])
        await beat(server, "a", 1)
        await server.execute(SET_PROFILE, input={"nodeId": "a", **profile})
        transitions: list[str] = []
        while not transitions or transitions[-1] != "MISSED_HEARTBEATS OFFLINE":
            event = (await client.receive())["payload"]["data"]["nodeStatusChanges"]
            if event["__typename"] == "NodeStatusChanged":
                transitions.append(f"{event['change']['reason']} {event['change']['status']}")
        assert transitions[0] == "REGISTERED ONLINE"
        await server.execute(MAINTENANCE, input={"nodeId": "a", "enabled": True})
        await server.execute(DEREGISTER, input={"nodeId": "a"})
        create_token = "mutation { createToken(input: {role: VIEWER}) { token { id } } }"
        token_id = (await server.execute(create_token))["createToken"]["token"]["id"]
        await server.execute(
            f'mutation {{ revokeToken(input: {{id: "{token_id}"}}) {{ __typename }} }}'
        )
        audit_log = await server.execute("{ auditLog { nodes { action } } }")
        assert len(audit_log["auditLog"]["nodes"]) == 7
        health = (await server.http.get("/health")).json()
        assert (health["status"], health["failed_tasks"]) == ("healthy", [])


async def test_service_role_does_the_housekeeping_of_tables_that_it_does_not_own(
    provisioning: Provisioning, tmp_path: Path
) -> None:
    await provisioning.run()
    names = provisioning.names
    async with open_administrator(provisioning.url(names.owner)) as run:
        await run(
            "INSERT INTO audit_log (recorded_at, actor, action, subject)"
            " SELECT now() - make_interval(days => n), 'a', 'b', n"
            " FROM unnest(ARRAY[1, 399, 401]) AS n"
        )
    async with run_server(
        provisioning.url(names.service),
        tmp_path,
        change_log_max_age_seconds=0.0001,
        metrics_history_max_age_seconds=40 * DAY.total_seconds(),
    ) as server:
        database = server.services.database
        async with database.write() as session:
            await session.execute(
                text(
                    "INSERT INTO heartbeat_log (timestamp, node_id, status)"
                    " SELECT now() - make_interval(days => n), gen_random_uuid(), 'online'"
                    " FROM unnest(ARRAY[1, 15, 100]) AS n"
                )
            )
        housekeeping = Housekeeping(database, server.services.settings, Metrics())
        await housekeeping.make_day_partitions()
        assert (
            await count_partitions(database, "heartbeat_log") == 12
        )  # the default partition included
        await housekeeping.roll_up_hours()
        months = await count_partitions(database, "metrics_history")
        await housekeeping.drop_old_days()
        assert await count_partitions(database, "heartbeat_log") == 10
        await housekeeping.drop_old_months()
        assert await count_partitions(database, "metrics_history") == months - 1
        assert await fetch_rows(database, "SELECT sum(heartbeats) FROM metrics_history") == [(2,)]
        assert await housekeeping.trim_audit_log() == 1
        assert await housekeeping.trim_change_log() == 2
        await housekeeping.purge_tokens()


async def test_service_role_cannot_drop_current_partitions(provisioning: Provisioning) -> None:
    await provisioning.run()
    async with provisioning.database(provisioning.names.service) as database:
        async with database.write() as session:
            await partitions.make_day_partitions(session)
            await partitions.make_month_partition(session, datetime.now(UTC))
        async with database.read() as session:
            [today, *_] = await partitions.list_partitions(session, "heartbeat_log")
            [month] = await partitions.list_partitions(session, "metrics_history")
        for partition in (today, month):
            async with database.write() as session:
                with pytest.raises(DBAPIError, match="only days and months that are over"):
                    await partitions.drop_partition(session, partition)


async def count_partitions(database: Database, table: str) -> int:
    query = "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass(:table)"
    [(count,)] = await fetch_rows(database, query, table=table)
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE SCHEMA mine",
        "CREATE FUNCTION mine() RETURNS int LANGUAGE sql RETURN 1",
        "ALTER TABLE nodes ADD COLUMN mine int",
        "ALTER TABLE audit_log DISABLE TRIGGER ALL",
        "ALTER TABLE audit_log OWNER TO CURRENT_USER",
        "CREATE INDEX ON nodes (hostname)",
        "CREATE TRIGGER t BEFORE INSERT ON audit_log EXECUTE FUNCTION tsvector_update_trigger()",
        "CREATE RULE r AS ON INSERT TO audit_log DO INSTEAD NOTHING",
        "CREATE POLICY p ON audit_log",
        "DROP TABLE nodes",
        "DROP TABLE audit_log",
        "DROP FUNCTION trim_audit_log(timestamptz, int)",
        "ALTER FUNCTION trim_audit_log(timestamptz, int) RESET search_path",
        "CREATE OR REPLACE FUNCTION registry_now() RETURNS timestamptz LANGUAGE sql RETURN now()",
        "TRUNCATE nodes",
        "TRUNCATE audit_log",
        "TRUNCATE heartbeat_log",
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "SELECT * FROM audit_log FOR UPDATE",
        (
            "INSERT INTO audit_log (actor, action, subject) VALUES ('a', 'b', 'c')"
            " ON CONFLICT (id) DO UPDATE SET actor = 'nobody'"
        ),
        "MERGE INTO audit_log USING nodes ON true WHEN MATCHED THEN DELETE",
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM alembic_version",
        "SET ROLE {owner}",
        "SET SESSION AUTHORIZATION {owner}",
        "ALTER ROLE CURRENT_USER CREATEROLE",
        "ALTER ROLE {owner} PASSWORD 'x'",
        "DROP DATABASE {database}",
        "SELECT trim_audit_log(now(), 1000)",
        "SELECT make_heartbeat_day((now() AT TIME ZONE 'UTC')::date + 32)",
        "SELECT make_heartbeat_day(NULL)",
        "SELECT make_metrics_month((now() AT TIME ZONE 'UTC')::date + 32)",
        "SELECT make_metrics_month(NULL)",
        "SELECT drop_partition('heartbeat_log_default')",
        "SELECT drop_partition('heartbeat_log')",
        "SELECT drop_partition('audit_log')",
        "SELECT drop_partition(NULL)",
        "COPY nodes TO '/tmp/nodes'",
        "COPY nodes TO PROGRAM 'cat'",
    ],
)
async def test_forbidden_statement_of_the_service_role_is_rejected(
    restricted: Provisioning, statement: str
) -> None:
    names = restricted.names
    sql = statement.format(owner=quote(names.owner), database=quote(names.database))
    async with open_administrator(restricted.url(names.service)) as run:
        [(before,)] = await run("SELECT count(*) FROM audit_log")
        with pytest.raises(DBAPIError) as rejection:
            await run(sql)
        assert rejection.value.orig is not None
        assert rejection.value.orig.sqlstate == "42501"  # type: ignore[attr-defined]  # asyncpg's
        assert await run("SELECT count(*) FROM audit_log") == [(before,)]


async def test_other_roles_have_no_access(provisioning: Provisioning) -> None:
    await provisioning.run()
    outsider = provisioning.names.service + "x"
    async with open_administrator(provisioning.administrator) as run:
        await run(f"CREATE ROLE {quote(outsider)} LOGIN")
        try:
            with pytest.raises(DBAPIError, match="permission denied for database"):
                async with open_administrator(provisioning.url(outsider)) as run_as_outsider:
                    await run_as_outsider("SELECT 1")
            await run(
                f"GRANT CONNECT ON DATABASE {quote(provisioning.names.database)}"
                f" TO {quote(outsider)}"
            )
            async with open_administrator(provisioning.url(outsider)) as run_as_outsider:
                for statement in (
                    "SELECT * FROM public.nodes",
                    "CREATE TABLE public.mine ()",
                    "SELECT public.registry_now()",
                ):
                    with pytest.raises(DBAPIError, match="permission denied"):
                        await run_as_outsider(statement)
        finally:
            await run(f"DROP OWNED BY {quote(outsider)}")
            await run(
                f"REVOKE ALL ON DATABASE {quote(provisioning.names.database)}"
                f" FROM {quote(outsider)}"
            )
            await run(f"DROP ROLE {quote(outsider)}")


async def test_service_role_can_use_what_later_migrations_make(
    provisioning: Provisioning,
) -> None:
    await provisioning.run()
    async with open_administrator(provisioning.url(provisioning.names.owner)) as run:
        await run("CREATE TABLE later (id int GENERATED ALWAYS AS IDENTITY, said text)")
        await run("CREATE FUNCTION two() RETURNS int LANGUAGE sql RETURN 2")
    async with open_administrator(provisioning.url(provisioning.names.service)) as run:
        await run("INSERT INTO later (said) VALUES ('hello')")
        assert await run("SELECT id, said, two() FROM later") == [(1, "hello", 2)]
        with pytest.raises(DBAPIError, match="permission denied"):
            await run("TRUNCATE later")


STATE = """
SELECT (SELECT jsonb_agg(relacl::text ORDER BY oid) FROM pg_class),
       (SELECT jsonb_agg(proacl::text ORDER BY oid) FROM pg_proc),
       (SELECT jsonb_agg(nspacl::text ORDER BY oid) FROM pg_namespace),
       (SELECT jsonb_agg(defaclacl::text ORDER BY oid) FROM pg_default_acl),
       (SELECT jsonb_agg(datacl::text ORDER BY oid) FROM pg_database WHERE datname = :database),
       (SELECT jsonb_agg(rolpassword ORDER BY oid) FROM pg_authid
        WHERE rolname IN (:owner, :service))
"""


async def read_state(provisioning: Provisioning) -> list[Any]:
    names = provisioning.names
    url = provisioning.administrator.set(database=names.database)
    async with open_administrator(url) as run:
        [row] = await run(STATE, database=names.database, owner=names.owner, service=names.service)
    return list(row)


async def test_second_run_changes_nothing(provisioning: Provisioning) -> None:
    assert await provisioning.run()
    assert set(provisioning.passwords) == {provisioning.names.owner, provisioning.names.service}
    before = await read_state(provisioning)
    assert not await provisioning.run()
    assert provisioning.passwords == {}
    assert await read_state(provisioning) == before


async def test_passwords_are_replaced_on_request(provisioning: Provisioning) -> None:
    await provisioning.run()
    first, before = provisioning.passwords, await read_state(provisioning)
    assert not await provisioning.run(new_passwords=True)
    assert provisioning.passwords.keys() == first.keys()
    assert not {*provisioning.passwords.values()} & {*first.values()}
    after = await read_state(provisioning)
    assert after[:-1] == before[:-1]
    assert not {*after[-1]} & {*before[-1]}


def _is_verifier_of(password: str, verifier: str) -> bool:
    """Return whether a stored SCRAM verifier is that of the password (RFC 5802, section 3)."""
    _, iterations_salt, stored_server = verifier.split("$")
    iterations, salt = iterations_salt.split(":")
    salted = hashlib.pbkdf2_hmac(
        "sha256", password.encode(), base64.b64decode(salt), int(iterations)
    )
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    stored, server = (base64.b64decode(part) for part in stored_server.split(":"))
    return (stored, server) == (hashlib.sha256(client_key).digest(), server_key)


async def test_passwords_are_strong_and_valid_and_never_sent(provisioning: Provisioning) -> None:
    sent: list[str] = []

    def record_statement(
        _c: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        sent.append(f"{statement} {parameters}")

    event.listen(Engine, "before_cursor_execute", record_statement)
    try:
        await provisioning.run()
    finally:
        event.remove(Engine, "before_cursor_execute", record_statement)
    assert [statement for statement in sent if "CREATE ROLE" in statement]
    async with open_administrator(provisioning.administrator) as run:
        for role, password in provisioning.passwords.items():
            assert len(password) >= 40
            assert not [statement for statement in sent if password in statement]
            [(verifier,)] = await run(
                "SELECT rolpassword FROM pg_authid WHERE rolname = :r", r=role
            )
            assert _is_verifier_of(password, verifier)
            assert not _is_verifier_of(password + "x", verifier)


async def test_roles_are_not_made_if_their_passwords_cannot_be_stored(
    provisioning: Provisioning,
) -> None:
    def fail_to_store(_: Mapping[str, str]) -> None:
        raise FileExistsError

    with pytest.raises(FileExistsError):
        await provision(
            provisioning.administrator,
            provisioning.names,
            new_passwords=False,
            store_passwords=fail_to_store,
        )
    async with open_administrator(provisioning.administrator) as run:
        assert (
            await run(
                "SELECT rolname FROM pg_roles WHERE rolname IN (:owner, :service)",
                owner=provisioning.names.owner,
                service=provisioning.names.service,
            )
            == []
        )


async def test_administrator_need_not_be_a_superuser(provisioning: Provisioning) -> None:
    name = f"admin_{secrets.token_hex(4)}"
    superuser = provisioning.administrator
    async with open_administrator(superuser) as run:
        await run(f"CREATE ROLE {name} LOGIN CREATEROLE CREATEDB")
        provisioning.administrator = superuser.set(username=name)
        try:
            assert await provisioning.run()
            assert not await provisioning.run()
            assert not await provisioning.run(new_passwords=True)
            async with open_administrator(
                provisioning.url(provisioning.names.service)
            ) as run_as_service:
                with pytest.raises(DBAPIError, match="permission denied"):
                    await run_as_service("DELETE FROM audit_log")
        finally:
            provisioning.administrator = superuser
            await run(f"DROP DATABASE IF EXISTS {quote(provisioning.names.database)} WITH (FORCE)")
            for role in (provisioning.names.owner, provisioning.names.service):
                await run(f"DROP ROLE IF EXISTS {quote(role)}")
            await run(f"DROP ROLE {name}")


async def test_existing_database_of_the_owner_gets_its_privileges_reset(
    provisioning: Provisioning,
) -> None:
    """The database was made by hand and grants privileges to everybody."""
    await provisioning.run()
    before = await read_state(provisioning)
    names = provisioning.names
    async with open_administrator(provisioning.url(names.owner)) as run:
        for grantee in ("PUBLIC", quote(names.service)):
            await run(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {grantee}")
            await run(f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO {grantee}")
        await run("GRANT ALL ON SCHEMA public TO PUBLIC")
        await run(f"GRANT ALL ON DATABASE {quote(names.database)} TO PUBLIC")
    assert await read_state(provisioning) != before
    await provisioning.run()
    assert await read_state(provisioning) == before


@pytest.mark.parametrize(
    "privilege", ["SUPERUSER", "CREATEROLE", "CREATEDB", "member of the owner"]
)
async def test_role_with_too_many_privileges_is_rejected_as_service_role(
    provisioning: Provisioning, privilege: str
) -> None:
    owner, service = (
        quote(provisioning.names.owner),
        quote(provisioning.names.service),
    )
    async with open_administrator(provisioning.administrator) as run:
        await run(f"CREATE ROLE {owner} LOGIN")
        await run(f"CREATE ROLE {service} LOGIN")
        if privilege.isupper():
            await run(f"ALTER ROLE {service} {privilege}")
        else:
            await run(f"GRANT {owner} TO {service}")
    with pytest.raises(ProvisioningRejected, match="more privileges than a service should"):
        await provisioning.run()


async def test_role_with_foreign_privileges_is_rejected_as_service_role(
    provisioning: Provisioning,
) -> None:
    async with open_administrator(provisioning.administrator) as run:
        await run(f"CREATE ROLE {quote(provisioning.names.service)} LOGIN")
        await run(f"GRANT pg_write_all_data TO {quote(provisioning.names.service)}")
    with pytest.raises(ProvisioningRejected, match="privileges from elsewhere"):
        await provisioning.run()


async def test_database_of_another_owner_is_left_alone(provisioning: Provisioning) -> None:
    async with open_administrator(provisioning.administrator) as run:
        await run(f"CREATE DATABASE {quote(provisioning.names.database)}")
    with pytest.raises(ProvisioningRejected, match="name it as the owner"):
        await provisioning.run()
    async with open_administrator(
        provisioning.administrator.set(database=provisioning.names.database)
    ) as run:
        assert await run("SELECT to_regclass('nodes')") == [(None,)]


async def test_security_definer_functions_fix_their_search_path_and_are_not_public(
    database: Database,
) -> None:
    """Also in a database of one role: a caller's search path could substitute other tables."""
    functions = await fetch_rows(
        database,
        "SELECT proname, 'search_path=public, pg_temp' = ANY(proconfig),"
        " has_function_privilege('pg_monitor', oid, 'EXECUTE')"
        " FROM pg_proc WHERE prosecdef AND pronamespace = 'public'::regnamespace ORDER BY proname",
    )
    assert functions == [
        ("drop_partition", True, False),
        ("make_heartbeat_day", True, False),
        ("make_metrics_month", True, False),
        ("repeat_audit_entry", True, False),
        ("trim_audit_log", True, False),
    ]


async def test_migration_revokes_the_privileges_of_others_on_the_audit_log(
    empty_database_url: URL,
) -> None:
    engine = create_async_engine(empty_database_url)
    await migrate(engine, "0005")
    async with open_administrator(empty_database_url) as run:
        for grantee in ("PUBLIC", "pg_monitor"):
            await run(f"GRANT ALL ON audit_log TO {grantee}")
        await migrate(engine)
        privileges = (
            "SELECT may FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE',"
            " 'TRIGGER']) AS may WHERE has_table_privilege('pg_monitor', 'audit_log', may)"
        )
        assert await run(privileges) == [("SELECT",), ("INSERT",)]
    await engine.dispose()
