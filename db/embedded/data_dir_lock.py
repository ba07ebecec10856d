"""The lock of the data directory, which one process holds at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from db.core.errors import EmbeddedServerFailed


class DataDirInUse(Exception):
    """Another process holds the data directory.

    `holder_pid` is None if that process has not written its id yet.
    """

    def __init__(self, data_dir: Path, holder_pid: int | None) -> None:
        super().__init__(f"{data_dir} is in use by process {holder_pid or '(unknown)'}")
        self.data_dir = data_dir
        self.holder_pid = holder_pid


@contextmanager
def lock_data_dir(data_dir: Path) -> Iterator[Path]:
    """Hold the data directory's lock in the block, and yield its absolute path.

    The directory is made if missing. The kernel releases the lock however the process ends.
    Raises: DataDirInUse. EmbeddedServerFailed: the directory cannot be used.
    """
    resolved = data_dir.resolve()
    try:
        resolved.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Python opens it close-on-exec, else PostgreSQL would hold the lock after this process.
        descriptor = os.open(resolved / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedServerFailed(f"the data directory cannot be used: {error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 20).strip()
            raise DataDirInUse(resolved, int(pid) if pid.isdigit() else None) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
        yield resolved
    finally:
        os.close(descriptor)
