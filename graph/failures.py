"""The failures that end a process in one line: an operator can mend them, or the log has more."""

from sqlalchemy.exc import DBAPIError

from db.archive import BackupRefused
from db.data_folder import DataFolderInUse
from db.errors import EmbeddedServerFailed, RegistryError
from db.migrate import SchemaMismatch
from db.postgres_programs import ProgramFailed, ProgramMissing
from db.provision import ProvisioningRefused
from graph.settings import ConfigurationError
from graph.supervisor import BackgroundTaskDied


class WorkerFailed(Exception):
    """A worker ends before it serves; `reason` is its own word, or how it ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a worker cannot start: {reason}")
        self.reason = reason


TOLD_IN_ONE_LINE = (
    ConfigurationError,
    SchemaMismatch,
    ProvisioningRefused,
    BackupRefused,
    ProgramMissing,
    ProgramFailed,
    DataFolderInUse,
    EmbeddedServerFailed,
    WorkerFailed,
    BackgroundTaskDied,
    RegistryError,
    OSError,
    DBAPIError,
)


def in_one_line(error: Exception) -> str:
    if isinstance(error, DBAPIError):
        return f"the database refuses: {str(error.orig).splitlines()[0]}"
    return str(error)
