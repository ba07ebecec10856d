"""`node-registry doctor`, beside a real registry that is made to have one fault after the other."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from db.core.errors import EmbeddedServerFailed
from db.embedded.server import get_running_url
from db.ops.check_result import CheckResult, Severity
from graph.cli.doctor import examine
from graph.core.settings import Settings
from tests.support.authority import BEGUN, Authority
from tests.support.commands import run
from tests.support.processes import BIN, Process, run_registry
from tests.support.provisioning import open_administrator
from tests.support.registry_process import find_free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISK = "disk"
"""How full that of the machine is which runs the tests, they cannot know."""


@dataclass(frozen=True)
class Patient:
    """A registry that runs on its embedded database."""

    data_dir: Path
    process: Process
    port: str

    async def sql(self, *statements: str) -> None:
        """Each by itself, as the superuser."""
        async with open_administrator(get_running_url(self.data_dir)) as execute:
            for statement in statements:
                await execute(statement)

    def settings(self, **given: Any) -> Settings:
        """As the role `patient`: what it is set to have does not trouble the registry."""
        url = get_running_url(self.data_dir).set(username="patient")
        return Settings(
            **{
                "http_port": 0,
                "data_dir": self.data_dir,
                "database_url": url.render_as_string(hide_password=False),
                **given,
            }
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patient() -> AsyncIterator[Patient]:
    with tempfile.TemporaryDirectory(prefix="node-registry-test-") as folder:
        data_dir = Path(folder) / "data"
        # At its usual pace, so that it does nothing between two looks.
        async with run_registry(data_dir, NODE_REGISTRY_SWEEP_INTERVAL_SECONDS="5") as (
            process,
            url,
        ):
            patient = Patient(data_dir, process, url.split(":")[2].split("/")[0])
            await patient.sql("CREATE ROLE patient SUPERUSER LOGIN", "CREATE ROLE clerk LOGIN")
            yield patient
            if process.process.returncode is None:
                await process.stop(signal.SIGTERM)


async def ill(settings: Settings) -> list[CheckResult]:
    """What is not well."""
    return [
        finding
        for finding in await examine(settings)
        if finding.severity is not Severity.OK and finding.subject != DISK
    ]


def shows(findings: list[CheckResult], subject: str, severity: Severity, *says: str) -> None:
    """The one thing that is not well."""
    [finding] = findings
    assert (finding.subject, finding.severity) == (subject, severity), finding
    assert "\n" not in finding.message
    for part in says:
        assert part in finding.message


async def test_a_registry_that_is_well_has_a_line_for_each_thing_and_status_0(
    patient: Patient,
) -> None:
    status, output, _ = await run(
        "doctor",
        NODE_REGISTRY_DATA_DIR=str(patient.data_dir),
        NODE_REGISTRY_HTTP_PORT=patient.port,
        http_proxy="http://127.0.0.1:9",  # which is not for this machine itself
        no_proxy="",
    )
    assert "a registry serves, and is healthy" in output
    lines = {line.split()[1]: line.split()[0] for line in output.splitlines()}
    assert lines.keys() >= {"access", "port", "certificate", DISK, "database", "schema", "bloat"}
    disk = lines.pop(DISK)
    assert set(lines.values()) == {"ok"}
    assert status == (1 if disk == "fault" else 0)


@pytest.mark.parametrize(
    ("breaks", "mends", "finding"),
    [
        pytest.param(
            "UPDATE alembic_version"
            " SET version_num = to_char(CAST(version_num AS int) - 1, 'FM0000')",
            "UPDATE alembic_version"
            " SET version_num = to_char(CAST(version_num AS int) + 1, 'FM0000')",
            ("schema", Severity.FAULT, "run `node-registry migrate`"),
            id="a schema that is behind",
        ),
        pytest.param(
            "UPDATE alembic_version SET version_num = '9' || version_num",
            "UPDATE alembic_version SET version_num = substr(version_num, 2)",
            ("schema", Severity.FAULT, "at schema 9", "a newer one"),
            id="a schema that is ahead",
        ),
        pytest.param(
            "ALTER ROLE patient SET default_transaction_read_only = on",
            "ALTER ROLE patient RESET default_transaction_read_only",
            ("writing", Severity.FAULT, "accepts no writes", "default_transaction_read_only"),
            id="a database that accepts no writes",
        ),
        pytest.param(
            "ALTER ROLE patient SET synchronous_commit = off",
            "ALTER ROLE patient RESET synchronous_commit",
            ("writing", Severity.FAULT, "synchronous_commit off", "set it to on"),
            id="commits that a crash may lose",
        ),
        pytest.param(
            "ALTER ROLE patient SET node_registry.now = '2026-01-01 00:00+00'",
            "ALTER ROLE patient RESET node_registry.now",
            ("clock", Severity.FAULT, "behind this machine's", "node_registry.now"),
            id="a clock that stands still",
        ),
        pytest.param(
            "DO $$ BEGIN EXECUTE 'DROP TABLE ' || to_char(now() AT TIME ZONE 'UTC'"
            " + interval '1 day', '\"heartbeat_log_\"YYYYMMDD'); END $$",
            "SELECT make_heartbeat_day(CAST(now() AT TIME ZONE 'UTC' AS date) + 1)",
            ("partitions", Severity.WARNING, "has none for", "`housekeeping.unavailable`"),
            id="a day without a partition",
        ),
        pytest.param(
            "INSERT INTO heartbeat_log (timestamp, node_id, status)"
            " VALUES ('2100-01-01', gen_random_uuid(), 'online')",
            "DELETE FROM heartbeat_log_default",
            ("default", Severity.WARNING, "1 heartbeats", "heartbeat_log_default"),
            id="a heartbeat in the default partition",
        ),
        pytest.param(
            "ALTER TABLE nodes SET (autovacuum_enabled = false)",
            "ALTER TABLE nodes RESET (autovacuum_enabled)",
            ("bloat", Severity.FAULT, "autovacuum is off", "RESET (autovacuum_enabled)"),
            id="a table that is not vacuumed",
        ),
        pytest.param(
            "SELECT pg_create_physical_replication_slot('forgotten', true)",
            "SELECT pg_drop_replication_slot('forgotten')",
            ("replication", Severity.WARNING, "slot forgotten", "pg_drop_replication_slot"),
            id="a slot that nobody uses",
        ),
        pytest.param(
            "UPDATE registry_state SET mode = 'protected', mode_reason = '9 of 12 are silent'",
            "UPDATE registry_state SET mode = 'normal', mode_reason = NULL",
            ("liveness", Severity.WARNING, "PROTECTED: 9 of 12 are silent"),
            id="a fleet that fell silent",
        ),
    ],
)
async def test_it_finds_what_is_wrong_with_a_database(
    patient: Patient, breaks: str, mends: str, finding: tuple[str, Severity, *tuple[str, ...]]
) -> None:
    for _ in range(5):  # the next sweep ends a mode that nothing calls for
        await patient.sql(breaks)
        try:
            findings = await ill(patient.settings())
        finally:
            await patient.sql(mends)
        if findings:
            break
    shows(findings, *finding)
    assert await ill(patient.settings()) == []


async def test_it_finds_dead_rows_and_the_index_that_makes_them(patient: Patient) -> None:
    await patient.sql(
        "INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason,"
        " removed_at) SELECT 'gone', 'gone', 'backup', 'worker', 'offline', 'deregistered', now()"
        " FROM generate_series(1, 5100)",
        "CREATE INDEX of_somebody ON nodes (heard_at)",
        *["UPDATE nodes SET heard_at = now() WHERE node_id = 'gone'"] * 2,
    )
    shows(await ill(patient.settings()), "bloat", Severity.WARNING, "VACUUM nodes")
    await patient.sql("VACUUM nodes")
    says = "drop indexes that the registry did not make"
    shows(await ill(patient.settings()), "bloat", Severity.WARNING, says)
    await patient.sql(
        "DROP INDEX of_somebody",
        "DELETE FROM nodes WHERE node_id = 'gone'",
        "VACUUM nodes",
        "SELECT pg_stat_reset()",
    )
    assert await ill(patient.settings()) == []


async def test_it_finds_a_role_that_may_not_do_its_work(patient: Patient) -> None:
    await patient.sql(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO clerk",
    )
    url = get_running_url(patient.data_dir).set(username="clerk")
    settings = patient.settings(database_url=url.render_as_string())
    for right in ("INSERT on status_changes", "EXECUTE on make_heartbeat_day(date)"):
        await patient.sql(f"REVOKE {right.replace(' on make', ' ON FUNCTION make')} FROM clerk")
        says = (f"clerk lacks {right}", "run `node-registry init-database` again")
        shows(await ill(settings), "rights", Severity.FAULT, *says)
        await patient.sql(f"GRANT {right.replace(' on make', ' ON FUNCTION make')} TO clerk")
    assert await ill(settings) == []


async def test_it_finds_a_database_that_is_not_there(patient: Patient) -> None:
    nowhere = f"postgresql://127.0.0.1:{find_free_port()}/node_registry"
    says = ("cannot be reached", "NODE_REGISTRY_DATABASE_URL")
    shows(await ill(patient.settings(database_url=nowhere)), "database", Severity.FAULT, *says)
    nothing = get_running_url(patient.data_dir).set(database="nothing").render_as_string()
    says = ('"nothing" does not exist', "NODE_REGISTRY_DATABASE_URL")
    shows(await ill(patient.settings(database_url=nothing)), "database", Severity.FAULT, *says)


async def test_it_finds_a_database_that_says_nothing(patient: Patient) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        url = f"postgresql://127.0.0.1:{silent.sockets[0].getsockname()[1]}/node_registry"
        settings = patient.settings(database_url=url, db_statement_timeout_seconds=0.4)
        findings = await ill(settings)
    shows(findings, "database", Severity.FAULT, "cannot be reached, no answer in time")


async def test_it_finds_a_port_that_something_else_has(patient: Patient) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as other:
        taken = other.sockets[0].getsockname()[1]
        findings = await ill(patient.settings(http_port=taken))
    shows(findings, "port", Severity.FAULT, "taken by something else", "another port")


async def test_it_finds_an_address_that_is_not_of_this_machine(patient: Patient) -> None:
    settings = patient.settings(http_host="192.0.2.1", auth="required", jwt_roles={"ops": "admin"})
    shows(await ill(settings), "port", Severity.FAULT, "NODE_REGISTRY_HTTP_HOST")


async def test_it_finds_a_certificate_that_has_ended_or_soon_will(
    patient: Patient, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    for ends_at, severity in (
        (BEGUN + timedelta(hours=1), Severity.FAULT),
        (BEGUN + timedelta(days=10), Severity.WARNING),
    ):
        pair = authority.client("registry", ends_at=ends_at)
        settings = patient.settings(tls_certificate=pair.certificate, tls_key=pair.key)
        shows(await ill(settings), "certificate", severity, str(pair.certificate), "renew it")
    settings = patient.settings(tls_certificate=tmp_path / "none.pem")
    shows(await ill(settings), "certificate", Severity.FAULT, "NODE_REGISTRY_TLS_CERTIFICATE")


async def test_it_finds_more_connections_wanted_than_allowed(patient: Patient) -> None:
    settings = patient.settings(workers=64, db_pool_size=100)
    says = ("a registry on this machine opens at most 6592", "raise max_connections")
    shows(await ill(settings), "connections", Severity.FAULT, *says)


async def test_it_finds_a_door_that_is_open_and_one_to_which_nobody_has_a_key(
    patient: Patient,
) -> None:
    settings = patient.settings(auth="off", env="production")
    shows(await ill(settings), "access", Severity.FAULT, "NODE_REGISTRY_AUTH")
    settings = patient.settings(auth="required")
    shows(await ill(settings), "keys", Severity.WARNING, "token create --role admin")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk"
)
async def test_it_finds_a_disk_that_is_full_and_ends_with_status_1(tmp_path: Path) -> None:
    mounted = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {BIN / 'node-registry'} doctor"
    environment = os.environ | {"NODE_REGISTRY_DATA_DIR": str(tmp_path)}
    done = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", "sh", "-c", mounted],
        env=environment | {"NODE_REGISTRY_HTTP_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    [disk] = [line for line in done.stdout.splitlines() if "disk" in line.split()]
    assert disk.startswith("fault")
    assert "0.0 GB of 0.0 GB are free" in disk


async def test_it_makes_no_database_where_there_is_none(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", http_port=0)
    shows(await ill(settings), "database", Severity.WARNING, "there is none", "serve")
    assert not settings.data_dir.exists()


async def test_it_looks_at_a_database_whose_registry_is_stopped(patient: Patient) -> None:
    """The last: it stops the registry."""
    await patient.process.stop(signal.SIGTERM)
    settings = Settings(data_dir=patient.data_dir, http_port=0)
    assert await ill(settings) == []
    with pytest.raises(EmbeddedServerFailed):
        get_running_url(patient.data_dir)
    (patient.data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    shows(await ill(settings), "database", Severity.FAULT, "is of PostgreSQL 17", "postgres.log")
