"""The limit on open files of the process; each connection takes one."""

import resource

import structlog

_OTHER_FILES = 1000  # requests under way, the database's connections, the libraries themselves

log = structlog.get_logger()


def raise_open_file_limit(connections: int) -> None:
    """Raise the limit on open files, by default 256 or 1,024 on many systems, for `connections`.

    Child processes inherit it. If the system does not allow enough, this logs a warning.
    """
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = connections + _OTHER_FILES
    allowed = required if hard_limit == resource.RLIM_INFINITY else min(required, hard_limit)
    if soft_limit != resource.RLIM_INFINITY and soft_limit < allowed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard_limit))
        except ValueError:
            allowed = soft_limit  # macOS may enforce a lower hard limit than it reports
    if allowed < connections:
        log.warning("open_files.limited", allowed=allowed, connections=connections)
