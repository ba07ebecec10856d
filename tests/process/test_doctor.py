"""`node-registry doctor` on a running registry into which one fault after the other is put."""

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
from tests.support.authority import VALID_FROM, Authority
from tests.support.commands import run
from tests.support.processes import BIN, Process, run_registry
from tests.support.provisioning import open_administrator
from tests.support.registry_process import find_free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISK = "disk"
"""The subject that the tests ignore: the disk of the test machine may be full."""


@dataclass(frozen=True)
class Registry:
    """A registry that runs on its embedded database."""

    data_dir: Path
    process: Process
    port: str

    async def execute(self, *statements: str) -> None:
        """Execute statements as the superuser, each in a transaction of its own."""
        async with open_administrator(get_running_url(self.data_dir)) as execute:
            for statement in statements:
                await execute(statement)

    def settings(self, **changes: Any) -> Settings:
        """Return settings of the role `patient`, whose own settings do not affect the registry."""
        url = get_running_url(self.data_dir).set(username="patient")
        return Settings(
            **{
                "http_port": 0,
                "data_dir": self.data_dir,
                "database_url": url.render_as_string(hide_password=False),
                **changes,
            }
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry() -> AsyncIterator[Registry]:
    with tempfile.TemporaryDirectory(prefix="node-registry-test-") as folder:
        data_dir = Path(folder) / "data"
        # A long sweep interval, so that the registry changes nothing between two checks.
        async with run_registry(data_dir, NODE_REGISTRY_SWEEP_INTERVAL_SECONDS="5") as (
            process,
            url,
        ):
            registry = Registry(data_dir, process, url.split(":")[2].split("/")[0])
            await registry.execute("CREATE ROLE patient SUPERUSER LOGIN", "CREATE ROLE clerk LOGIN")
            yield registry
            if process.process.returncode is None:
                await process.stop(signal.SIGTERM)


async def find_problems(settings: Settings) -> list[CheckResult]:
    """Return the findings of doctor that are not OK, except on the disk."""
    return [
        finding
        for finding in await examine(settings)
        if finding.severity is not Severity.OK and finding.subject != DISK
    ]


def require_finding(
    findings: list[CheckResult], subject: str, severity: Severity, *texts: str
) -> None:
    """Fail unless there is one finding, of that subject and severity, with those texts."""
    [finding] = findings
    assert (finding.subject, finding.severity) == (subject, severity), finding
    assert "\n" not in finding.message
    for part in texts:
        assert part in finding.message


async def test_doctor_prints_a_line_for_each_subject_of_a_healthy_registry(
    registry: Registry,
) -> None:
    status, output, _ = await run(
        "doctor",
        NODE_REGISTRY_DATA_DIR=str(registry.data_dir),
        NODE_REGISTRY_HTTP_PORT=registry.port,
        http_proxy="http://127.0.0.1:9",  # must not be used for this machine itself
        no_proxy="",
    )
    assert "a registry serves, and is healthy" in output
    lines = {line.split()[1]: line.split()[0] for line in output.splitlines()}
    assert lines.keys() >= {"access", "port", "certificate", DISK, "database", "schema", "bloat"}
    disk = lines.pop(DISK)
    assert set(lines.values()) == {"ok"}
    assert status == (1 if disk == "fault" else 0)


@pytest.mark.parametrize(
    ("break_statement", "repair_statement", "finding"),
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
async def test_doctor_reports_a_fault_of_the_database(
    registry: Registry,
    break_statement: str,
    repair_statement: str,
    finding: tuple[str, Severity, *tuple[str, ...]],
) -> None:
    for _ in range(5):  # a sweep in between may reset a mode that has no cause
        await registry.execute(break_statement)
        try:
            findings = await find_problems(registry.settings())
        finally:
            await registry.execute(repair_statement)
        if findings:
            break
    require_finding(findings, *finding)
    assert await find_problems(registry.settings()) == []


async def test_doctor_reports_dead_rows_and_a_foreign_index_on_an_updated_column(
    registry: Registry,
) -> None:
    await registry.execute(
        "INSERT INTO nodes (node_id, node_name, node_role, node_type, status, status_reason,"
        " removed_at) SELECT 'gone', 'gone', 'backup', 'worker', 'offline', 'deregistered', now()"
        " FROM generate_series(1, 5100)",
        "CREATE INDEX of_somebody ON nodes (heard_at)",
        *["UPDATE nodes SET heard_at = now() WHERE node_id = 'gone'"] * 2,
    )
    require_finding(
        await find_problems(registry.settings()), "bloat", Severity.WARNING, "VACUUM nodes"
    )
    await registry.execute("VACUUM nodes")
    text = "drop indexes that the registry did not make"
    require_finding(await find_problems(registry.settings()), "bloat", Severity.WARNING, text)
    await registry.execute(
        "DROP INDEX of_somebody",
        "DELETE FROM nodes WHERE node_id = 'gone'",
        "VACUUM nodes",
        "SELECT pg_stat_reset()",
    )
    assert await find_problems(registry.settings()) == []


async def test_doctor_reports_a_role_that_lacks_a_privilege(registry: Registry) -> None:
    await registry.execute(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO clerk",
    )
    url = get_running_url(registry.data_dir).set(username="clerk")
    settings = registry.settings(database_url=url.render_as_string())
    for privilege in ("INSERT on status_changes", "EXECUTE on make_heartbeat_day(date)"):
        await registry.execute(
            f"REVOKE {privilege.replace(' on make', ' ON FUNCTION make')} FROM clerk"
        )
        texts = (f"clerk lacks {privilege}", "run `node-registry init-database` again")
        require_finding(await find_problems(settings), "rights", Severity.FAULT, *texts)
        await registry.execute(
            f"GRANT {privilege.replace(' on make', ' ON FUNCTION make')} TO clerk"
        )
    assert await find_problems(settings) == []


async def test_doctor_reports_an_unreachable_server_and_a_missing_database(
    registry: Registry,
) -> None:
    unreachable_url = f"postgresql://127.0.0.1:{find_free_port()}/node_registry"
    texts = ("cannot be reached", "NODE_REGISTRY_DATABASE_URL")
    require_finding(
        await find_problems(registry.settings(database_url=unreachable_url)),
        "database",
        Severity.FAULT,
        *texts,
    )
    missing_url = get_running_url(registry.data_dir).set(database="nothing").render_as_string()
    texts = ('"nothing" does not exist', "NODE_REGISTRY_DATABASE_URL")
    require_finding(
        await find_problems(registry.settings(database_url=missing_url)),
        "database",
        Severity.FAULT,
        *texts,
    )


async def test_doctor_reports_a_database_that_does_not_answer(registry: Registry) -> None:
    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(stay_silent, "127.0.0.1", 0) as silent:
        url = f"postgresql://127.0.0.1:{silent.sockets[0].getsockname()[1]}/node_registry"
        settings = registry.settings(database_url=url, db_statement_timeout_seconds=0.4)
        findings = await find_problems(settings)
    require_finding(findings, "database", Severity.FAULT, "cannot be reached, no answer in time")


async def test_doctor_reports_a_port_used_by_another_program(registry: Registry) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        findings = await find_problems(registry.settings(http_port=port))
    require_finding(findings, "port", Severity.FAULT, "taken by something else", "another port")


async def test_doctor_reports_an_address_that_is_not_of_this_machine(
    registry: Registry,
) -> None:
    settings = registry.settings(http_host="192.0.2.1", auth="required", jwt_roles={"ops": "admin"})
    require_finding(
        await find_problems(settings), "port", Severity.FAULT, "NODE_REGISTRY_HTTP_HOST"
    )


async def test_doctor_reports_a_certificate_that_has_expired_or_soon_will(
    registry: Registry, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    for ends_at, severity in (
        (VALID_FROM + timedelta(hours=1), Severity.FAULT),
        (VALID_FROM + timedelta(days=10), Severity.WARNING),
    ):
        pair = authority.client("registry", ends_at=ends_at)
        settings = registry.settings(tls_certificate=pair.certificate, tls_key=pair.key)
        require_finding(
            await find_problems(settings),
            "certificate",
            severity,
            str(pair.certificate),
            "renew it",
        )
    settings = registry.settings(tls_certificate=tmp_path / "none.pem")
    require_finding(
        await find_problems(settings),
        "certificate",
        Severity.FAULT,
        "NODE_REGISTRY_TLS_CERTIFICATE",
    )


async def test_doctor_reports_more_connections_than_the_database_allows(
    registry: Registry,
) -> None:
    settings = registry.settings(workers=64, db_pool_size=100)
    texts = ("a registry on this machine opens at most 6592", "raise max_connections")
    require_finding(await find_problems(settings), "connections", Severity.FAULT, *texts)


async def test_doctor_reports_a_registry_without_authentication_and_one_without_tokens(
    registry: Registry,
) -> None:
    settings = registry.settings(auth="off", env="production")
    require_finding(await find_problems(settings), "access", Severity.FAULT, "NODE_REGISTRY_AUTH")
    settings = registry.settings(auth="required")
    require_finding(
        await find_problems(settings), "keys", Severity.WARNING, "token create --role admin"
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small disk"
)
async def test_doctor_reports_a_full_disk_and_exits_with_status_1(tmp_path: Path) -> None:
    command = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {BIN / 'node-registry'} doctor"
    environment = os.environ | {"NODE_REGISTRY_DATA_DIR": str(tmp_path)}
    process = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", "sh", "-c", command],
        env=environment | {"NODE_REGISTRY_HTTP_PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    [disk] = [line for line in process.stdout.splitlines() if "disk" in line.split()]
    assert disk.startswith("fault")
    assert "0.0 GB of 0.0 GB are free" in disk


async def test_doctor_does_not_create_a_missing_database(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", http_port=0)
    require_finding(
        await find_problems(settings), "database", Severity.WARNING, "there is none", "serve"
    )
    assert not settings.data_dir.exists()


async def test_doctor_checks_the_database_of_a_stopped_registry(
    registry: Registry,
) -> None:
    """Stop the registry: this must be the last test of the module."""
    await registry.process.stop(signal.SIGTERM)
    settings = Settings(data_dir=registry.data_dir, http_port=0)
    assert await find_problems(settings) == []
    with pytest.raises(EmbeddedServerFailed):
        get_running_url(registry.data_dir)
    (registry.data_dir / "postgres" / "PG_VERSION").write_text("17\n")
    require_finding(
        await find_problems(settings),
        "database",
        Severity.FAULT,
        "is of PostgreSQL 17",
        "postgres.log",
    )
