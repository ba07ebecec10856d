"""The process's limit of open files, of which each connection takes one."""

import resource

import structlog

_OTHER_FILES = 1000  # requests under way, the database's connections, the libraries themselves

log = structlog.get_logger()


def raise_open_file_limit(connections: int) -> None:
    """Raises the process's limit of open files, which many systems begin at 256 or 1,024.

    What it starts inherits it. One that the system holds too low is told of, and is no failure.
    """
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = connections + _OTHER_FILES
    allowed = required if hard_limit == resource.RLIM_INFINITY else min(required, hard_limit)
    if soft_limit != resource.RLIM_INFINITY and soft_limit < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard_limit))
        except ValueError:
            allowed = soft_limit  # macOS may hold it lower than it says
    if allowed < connections:
        log.warning("limits.few_open_files", allowed=allowed, connections=connections)
