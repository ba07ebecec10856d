"""The failures that an operator can mend, each in one line; all others are faults of ours."""

from sqlalchemy.exc import DBAPIError

from db.data_folder import DataFolderInUse
from db.errors import EmbeddedServerFailed, RegistryError
from db.migrate import SchemaMismatch
from graph.settings import ConfigurationError


class WorkerFailed(Exception):
    """A worker ends before it serves; `reason` is its own word, or how it ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"a worker cannot start: {reason}")
        self.reason = reason


MENDABLE = (
    ConfigurationError,
    SchemaMismatch,
    DataFolderInUse,
    EmbeddedServerFailed,
    WorkerFailed,
    RegistryError,
    OSError,
    DBAPIError,
)


def in_one_line(error: Exception) -> str:
    if isinstance(error, DBAPIError):
        return f"the database refuses: {str(error.orig).splitlines()[0]}"
    return str(error)
