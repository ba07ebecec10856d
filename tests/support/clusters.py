"""PostgreSQL data directories for tests: temporary ones, and copies of one template."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from db.core.database import Database
from db.core.migrate import migrate
from db.embedded.server import run_embedded_postgres

# A temporary database need not survive a crash of the machine.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "96MB",
}

_MEMORY = Path("/dev/shm")  # noqa: S108  # folders of our own in it
_ROOM_BYTES = 2 * 2**30


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder, in memory if there is room: a database has many short-lived files.

    It is not in pytest's folder, because root's next run would make that unreadable for the user
    of PostgreSQL.
    """
    has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(
        prefix="node-registry-test-",
        dir=_MEMORY if has_room else None,
        ignore_cleanup_errors=True,  # a killed server may still be exiting
    ) as name:
        yield Path(name).resolve()


def find_processes(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                processes.append(process)
    return processes


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster_template() -> AsyncIterator[Path]:
    """Yield a data directory as a registry leaves it after one start and stop."""
    with temporary_folder() as folder:
        async with run_embedded_postgres(folder, options=FAST) as url:
            database = Database(url)
            await migrate(database.engine)
            await database.close()
        yield folder


@pytest.fixture
def new_data_dir() -> Iterator[Path]:
    """Yield the path of a data directory to create; kill what still runs in it after the test."""
    with temporary_folder() as folder:
        yield folder / "data"
        for process in find_processes(folder):
            process.kill()
            process.wait(5)


@pytest.fixture
def data_dir(new_data_dir: Path, cluster_template: Path) -> Path:
    """Yield a data directory with a copy of `cluster_template`, because making one takes long."""
    shutil.copytree(cluster_template, new_data_dir)
    return new_data_dir
