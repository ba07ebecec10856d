"""Noticing that a file was replaced or rewritten, without reading it."""

from pathlib import Path


def fingerprint_file(path: Path) -> tuple[int, int, int]:
    """Return a value that changes when the file is written or replaced. Raises: OSError."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
