"""The data folder, held by one process at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from db.core.errors import EmbeddedServerFailed


class DataFolderInUse(Exception):
    """Another server holds the folder; `holder_pid` is None if it has not yet said who it is."""

    def __init__(self, folder: Path, holder_pid: int | None) -> None:
        super().__init__(f"{folder} is in use by process {holder_pid or '(unknown)'}")
        self.folder = folder
        self.holder_pid = holder_pid


@contextmanager
def held(data_dir: Path) -> Iterator[Path]:
    """Locks the folder for this process; the kernel lets go when the process dies, however."""
    folder = data_dir.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Closed on exec, like all that Python opens: PostgreSQL would hold it beyond our own death.
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedServerFailed(f"the data folder cannot be used: {error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(lock, 20).strip()
            raise DataFolderInUse(folder, int(pid) if pid.isdigit() else None) from None
        os.truncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        yield folder
    finally:
        os.close(lock)
