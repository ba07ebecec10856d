"""The embedded PostgreSQL, with real servers: start, crash, adoption and stop."""

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from db.core.errors import EmbeddedServerFailed
from db.embedded.data_dir_lock import DataDirInUse
from db.embedded.server import run_embedded_postgres
from tests.support.clusters import find_processes, temporary_folder

OPTIONS = {"fsync": "off"}

HOLDER_SCRIPT = f"""
import asyncio, pathlib, sys
from db.embedded.server import run_embedded_postgres

async def hold():
    async with run_embedded_postgres(pathlib.Path(sys.argv[1]), options={OPTIONS!r}):
        print("started", flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    """A data folder with a cluster, created once because initdb takes long."""

    async def start(folder: Path) -> None:
        async with run_embedded_postgres(folder, options=OPTIONS):
            pass

    with temporary_folder() as folder:
        asyncio.run(start(folder / "data folder"))
        yield folder / "data folder"


@pytest.fixture
def folder(shared_folder: Path) -> Iterator[Path]:
    """A data folder with a cluster; fails a test that leaves a process behind."""
    yield shared_folder
    wait_until(lambda: not find_processes(shared_folder))


@pytest.fixture
def new_folder() -> Iterator[Path]:
    """A path for a new data folder; fails a test that leaves a process behind."""
    with temporary_folder() as folder:
        yield folder / "data folder"
        wait_until(lambda: not find_processes(folder))


@pytest.fixture
def deep_folder(folder: Path) -> Iterator[Path]:
    """A data folder whose path is too long for a socket in it."""
    deep = folder / ("x" * 100)
    deep.mkdir(exist_ok=True)
    (folder / "postgres").rename(deep / "postgres")
    yield deep
    (deep / "postgres").rename(folder / "postgres")


def wait_until(is_met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_met():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def find_postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "postgres" / "postmaster.pid").read_text().split()[0]))


@contextmanager
def run_holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the folder and runs a server in it."""
    command = [sys.executable, "-c", HOLDER_SCRIPT, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # with SIGKILL


def wait_until_started(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert any(line == "started\n" for line in process.stdout)


async def query(url: URL, *statements: str) -> object:
    """Execute statements and return the first value of the last one's result."""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            for statement in statements[:-1]:
                await connection.execute(text(statement))
            return await connection.scalar(text(statements[-1]))
    finally:
        await engine.dispose()


async def test_the_server_has_the_same_database_on_every_machine(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert await query(url, "SELECT current_database()") == "node_registry"
        assert await query(url, "SHOW server_encoding") == "UTF8"
        assert await query(url, "SHOW data_checksums") == "on"
        assert await query(url, "SHOW max_connections") == "100"
        assert await query(url, "SHOW timezone") == "UTC"
        assert await query(url, "SELECT lower('ЇЖАК')") == "їжак"
        assert await query(url, "SELECT 'Z' < 'a'") is True


async def test_data_is_kept_until_the_next_start(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        await query(url, "CREATE TABLE kept AS SELECT 7 AS value", "SELECT 1")
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert await query(url, "SELECT value FROM kept") == 7


async def test_no_process_is_left_after_the_context_ends(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS):
        server = find_postmaster(folder)
        family = [server, *server.children()]
    assert len(family) > 3
    assert not any(process.is_running() for process in family)


async def test_no_process_is_left_after_a_cancellation(folder: Path) -> None:
    started = asyncio.Event()

    async def hold() -> None:
        async with run_embedded_postgres(folder, options=OPTIONS):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await started.wait()
    server = find_postmaster(folder)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_running()


async def test_a_cancelled_start_leaves_no_process_and_does_not_block_the_next_start(
    new_folder: Path,
) -> None:
    for _ in range(2):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), run_embedded_postgres(new_folder, options=OPTIONS):
                await asyncio.Event().wait()
        assert not find_processes(new_folder)
    async with run_embedded_postgres(new_folder, options=OPTIONS) as url:
        assert await query(url, "SELECT 1") == 1


async def test_the_server_listens_on_no_network(folder: Path) -> None:
    async with run_embedded_postgres(folder, options={**OPTIONS, "listen_addresses": "*"}) as url:
        assert await query(url, "SHOW listen_addresses") == ""
        assert not find_postmaster(folder).net_connections("inet")


async def test_only_the_owner_can_access_the_socket_folder(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert stat.S_IMODE(get_socket_dir(url).stat().st_mode) == 0o700


def get_socket_dir(url: URL) -> Path:
    host = url.query["host"]
    assert isinstance(host, str)
    return Path(host)


async def test_the_server_has_a_session_of_its_own(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS):
        server = find_postmaster(folder).pid
        assert os.getsid(server) == os.getpgid(server) == server


async def test_the_callers_environment_does_not_reach_the_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGOPTIONS", "LC_ALL", "TZ"):
        monkeypatch.setenv(name, "nonsense")
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert await query(url, "SHOW data_directory") == str(folder / "postgres")


async def test_a_held_folder_is_rejected_with_the_pid_of_its_holder(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        with pytest.raises(DataDirInUse) as rejection:
            async with run_embedded_postgres(folder, options=OPTIONS):
                pass
        assert rejection.value.data_dir == folder
        assert rejection.value.holder_pid == os.getpid()
        assert await query(url, "SELECT 1") == 1


async def test_the_server_of_a_killed_holder_is_adopted_and_stopped(
    folder: Path,
) -> None:
    with run_holder(folder) as process:
        wait_until_started(process)
        with pytest.raises(DataDirInUse) as rejection:
            async with run_embedded_postgres(folder, options=OPTIONS):
                pass
        assert rejection.value.holder_pid == process.pid
        orphan = find_postmaster(folder)
    assert orphan.is_running()
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert find_postmaster(folder) == orphan
        assert await query(url, "SELECT 1") == 1
    assert not orphan.is_running()


async def test_the_server_of_a_killed_holder_is_restarted_when_options_differ(folder: Path) -> None:
    with run_holder(folder) as process:
        wait_until_started(process)
        orphan = find_postmaster(folder)
    async with run_embedded_postgres(folder, options={**OPTIONS, "work_mem": "5MB"}) as url:
        assert not orphan.is_running()
        assert await query(url, "SHOW work_mem") == "5MB"


async def test_a_killed_server_recovers_committed_data(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        await query(url, "CREATE TABLE committed AS SELECT 7 AS value", "SELECT 1")
        find_postmaster(folder).kill()
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert await query(url, "SELECT value FROM committed") == 7
    assert "automatic recovery in progress" in read_log(folder)


async def test_a_killed_server_is_restarted_while_it_is_held(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        killed = find_postmaster(folder)
        killed.kill()
        async with asyncio.timeout(10):
            while True:
                with suppress(OSError, ValueError, DBAPIError, psutil.NoSuchProcess):
                    if (
                        find_postmaster(folder).pid != killed.pid
                        and await query(url, "SELECT 1") == 1
                    ):
                        break
                await asyncio.sleep(0.02)


def read_log(folder: Path) -> str:
    return (folder / "postgres.log").read_text()


BUSY = """
SELECT count(*) FROM pg_stat_activity
WHERE state = 'active' AND query LIKE '%generate_series%' AND pid <> pg_backend_pid()
"""


async def hold_and_kill(folder: Path) -> None:
    """Kill the server as often as it is started, while holding it."""
    async with run_embedded_postgres(folder, options=OPTIONS):
        while True:
            with suppress(OSError, ValueError, psutil.NoSuchProcess):
                find_postmaster(folder).kill()
            await asyncio.sleep(0.01)


async def test_a_server_that_goes_on_ending_soon_after_its_start_cancels_its_holder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.embedded.server._SUPERVISE_SECONDS", 0.01)
    monkeypatch.setattr("db.embedded.server._LONGEST_DELAY_SECONDS", 0.0)
    with capture_logs() as events, pytest.raises(EmbeddedServerFailed, match="ended 8 times"):
        await asyncio.wait_for(hold_and_kill(folder), timeout=60)
    assert [event["event"] for event in events].count("embedded.died") == 8


async def test_a_start_waits_for_the_backends_of_a_killed_server(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        busy = await asyncpg.connect(
            host=str(get_socket_dir(url)), port=5432, user="postgres", database="node_registry"
        )
        work = asyncio.create_task(
            busy.fetchval(
                "SELECT count(*) FROM generate_series(1, 10) a, generate_series(1, 1500000)"
            )
        )
        async with asyncio.timeout(10):
            while not await query(url, BUSY):
                await asyncio.sleep(0.01)
        find_postmaster(folder).kill()
    async with run_embedded_postgres(folder, options=OPTIONS) as url:
        assert await query(url, "SELECT 1") == 1
    with suppress(asyncpg.PostgresError, OSError):
        await work
    busy.terminate()
    assert "pre-existing shared memory block" in read_log(folder)


async def test_a_recorded_pid_of_another_program_does_not_block_a_start(folder: Path) -> None:
    async with run_embedded_postgres(folder, options=OPTIONS):
        find_postmaster(folder).kill()
    with run_bystander(folder) as other:
        async with run_embedded_postgres(folder, options=OPTIONS) as url:
            assert await query(url, "SELECT 1") == 1
        assert other.poll() is None


@contextmanager
def run_bystander(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of PostgreSQL's user that has the pid recorded by the killed server."""
    pgdata = folder / "postgres"
    user = pgdata.stat().st_uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as process:
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                _, _, rest = (pgdata / name).read_text().partition("\n")
                (pgdata / name).write_text(f"{process.pid}\n{rest}")
            yield process
        finally:
            process.kill()


async def test_a_cluster_whose_creation_was_killed_is_created_again(new_folder: Path) -> None:
    with run_holder(new_folder):
        wait_until(lambda: any(new_folder.glob("postgres.new-*/PG_VERSION")))
    assert not (new_folder / "postgres").exists()
    async with run_embedded_postgres(new_folder, options=OPTIONS) as url:
        assert await query(url, "SELECT 1") == 1


async def test_a_folder_with_a_long_path_has_its_socket_in_the_temporary_folder(
    deep_folder: Path,
) -> None:
    async with run_embedded_postgres(deep_folder, options=OPTIONS) as url:
        assert await query(url, "SELECT 1") == 1
        elsewhere = get_socket_dir(url)
        assert elsewhere.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    assert not elsewhere.exists()


async def test_an_orphan_with_its_socket_in_the_temporary_folder_is_adopted(
    deep_folder: Path,
) -> None:
    with run_holder(deep_folder) as process:
        wait_until_started(process)
        orphan = find_postmaster(deep_folder)
    async with run_embedded_postgres(deep_folder, options=OPTIONS) as url:
        assert find_postmaster(deep_folder) == orphan
        assert await query(url, "SELECT 1") == 1
    assert not get_socket_dir(url).exists()


async def test_data_of_another_major_version_is_rejected_in_one_line(new_folder: Path) -> None:
    pgdata = new_folder / "postgres"
    pgdata.mkdir(parents=True)
    (pgdata / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedServerFailed, match=r"is of PostgreSQL 15; 18 cannot") as failure:
        async with run_embedded_postgres(new_folder, options=OPTIONS):
            pass
    assert "\n" not in str(failure.value)
    assert list(pgdata.iterdir()) == [pgdata / "PG_VERSION"]


async def test_a_server_that_cannot_start_reports_its_log(folder: Path) -> None:
    with pytest.raises(EmbeddedServerFailed) as failure:
        async with run_embedded_postgres(folder, options={"no_such_setting": "1"}):
            pass
    assert any("no_such_setting" in line for line in failure.value.log_lines)


async def test_a_start_that_times_out_leaves_no_process(folder: Path) -> None:
    with pytest.raises(EmbeddedServerFailed, match=r"within 0.001 s"):
        async with run_embedded_postgres(folder, options=OPTIONS, start_timeout_seconds=0.001):
            pass
    assert not find_processes(folder)


async def test_a_folder_that_cannot_be_created_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerFailed, match="file/data"):
        async with run_embedded_postgres(tmp_path / "file" / "data"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as another user")
async def test_root_grants_its_user_search_but_not_list_permission_on_folders(folder: Path) -> None:
    folder.parent.chmod(0o700)
    with capture_logs() as events:
        async with run_embedded_postgres(folder, options=OPTIONS):
            assert find_postmaster(folder).username() == "embedded_postgres"
    granted_folders = {event["folder"] for event in events if event["event"].endswith("_granted")}
    assert granted_folders == {str(folder.parent)}
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o701
