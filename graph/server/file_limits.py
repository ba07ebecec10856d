"""The limit on open files of the process; each connection takes one."""

import resource

import structlog

from graph.core.settings import Settings

_SPARE_FILES = 1000  # for what is opened besides, where the system allows it
_OWN_FILES = 64  # the process itself: log, listeners, certificates, the libraries

log = structlog.get_logger()


def raise_open_file_limit(connections: int) -> None:
    """Raise the limit on open files, by default 256 or 1,024 on many systems, for `connections`.

    Child processes inherit it. If the system does not allow enough, this logs a warning.
    """
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = connections + _SPARE_FILES
    allowed = required if hard_limit == resource.RLIM_INFINITY else min(required, hard_limit)
    if soft_limit != resource.RLIM_INFINITY and soft_limit < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard_limit))
        except ValueError:
            allowed = soft_limit  # macOS may enforce a lower hard limit than it reports
    if allowed < connections:
        log.warning("open_files.limited", allowed=allowed, connections=connections)


def count_connection_files(settings: Settings) -> int:
    """Return how many connections the process may have open, by its limit on open files.

    The database's connections and the process's own files are left out.
    """
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    own_files = _OWN_FILES + settings.database_connections // settings.workers
    capacity = settings.max_connections + _SPARE_FILES
    if soft_limit != resource.RLIM_INFINITY:
        capacity = min(capacity, soft_limit - own_files)
    return max(1, capacity)
