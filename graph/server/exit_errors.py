"""The errors that end a process with one line: an operator can fix them, or the log has more."""

from sqlalchemy.exc import DBAPIError

from db.core.errors import EmbeddedServerFailed, RegistryError
from db.core.migrate import SchemaMismatch
from db.embedded.data_dir_lock import DataDirInUse
from db.ops.backup_seal import BackupRejected
from db.ops.pg_client_tools import ProgramFailed, ProgramMissing
from db.ops.provision import ProvisioningRejected
from graph.core.settings import ConfigurationError
from graph.live.background_tasks import BackgroundTaskDied


class WorkerFailed(Exception):
    """A worker cannot start, or goes on ending soon after it began to serve.

    `reason` is its last line of output, or its exit status.
    """

    def __init__(self, reason: str, *, short_runs: int = 0) -> None:
        """Create the error of a worker that served in so many short runs; 0: it cannot start."""
        problem = f"ended {short_runs} times soon after its start" if short_runs else "cannot start"
        super().__init__(f"a worker {problem}: {reason}")
        self.reason = reason


EXIT_ERRORS = (
    ConfigurationError,
    SchemaMismatch,
    ProvisioningRejected,
    BackupRejected,
    ProgramMissing,
    ProgramFailed,
    DataDirInUse,
    EmbeddedServerFailed,
    WorkerFailed,
    BackgroundTaskDied,
    RegistryError,
    OSError,
    DBAPIError,
)


def format_exit_error(error: Exception) -> str:
    """Return the one line that an operator reads about an error of EXIT_ERRORS."""
    if isinstance(error, DBAPIError):
        return f"the database reports an error: {str(error.orig).splitlines()[0]}"
    return str(error)
