"""PostgreSQL's data folders for tests: thrown away afterwards, and made once to be copied."""

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

# A database that is thrown away need not survive a crash of the machine.
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
    """Yield a folder, in memory where there is room: a database has many short-lived files.

    Never in pytest's own folder, which root's next run shuts to the user of PostgreSQL.
    """
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(
        prefix="node-registry-test-",
        dir=_MEMORY if roomy else None,
        ignore_cleanup_errors=True,  # a server that was killed may still be leaving
    ) as name:
        yield Path(name).resolve()


def find_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def made_cluster() -> AsyncIterator[Path]:
    """A data folder as a registry leaves it that was started and stopped once."""
    with temporary_folder() as folder:
        async with run_embedded_postgres(folder, options=FAST) as url:
            database = Database(url)
            await migrate(database.engine)
            await database.close()
        yield folder


@pytest.fixture
def new_data_dir() -> Iterator[Path]:
    """A folder to be; whatever a killed registry left running in it is ended."""
    with temporary_folder() as folder:
        yield folder / "data"
        for process in find_processes(folder):
            process.kill()
            process.wait(5)


@pytest.fixture
def data_dir(new_data_dir: Path, made_cluster: Path) -> Path:
    """Yield a data directory with a copy of `made_cluster`, because making one takes long."""
    shutil.copytree(made_cluster, new_data_dir)
    return new_data_dir
