"""The seal of a backup: an HMAC by a key of the installation that made it.

A restore runs the SQL that the backup contains. The seal proves that nobody else wrote any of it.
"""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

_KEY_BYTES = 32
_KEY = re.compile(rb"([0-9a-f]{64})\n?")


class BackupRejected(Exception):
    """A backup cannot be made or used. The message is one line that says why."""


class BackupKey:
    """The key in a file that its owner alone can read; the first backup creates it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def seal(self, content: bytes) -> str:
        """Return the seal of the content. Raises: BackupRejected: the file has no key. OSError."""
        return _compute_seal(self._read() or self._create(), content)

    def require_seal(self, backup: Path, content: bytes, seal: str) -> None:
        """Check that the seal is this key's of the content.

        Raises: BackupRejected: it is not, or there is no key. OSError.
        """
        if not seal:
            raise BackupRejected(f"{backup} is not sealed{_REMEDY}")
        key = self._read()
        if key is None:
            raise BackupRejected(
                f"{backup} is sealed, and there is no key in {self.file}: copy it from the"
                f" installation that made the backup{_REMEDY}"
            )
        if not hmac.compare_digest(_compute_seal(key, content).encode(), seal.encode()):
            raise BackupRejected(
                f"{backup} is not sealed by the key in {self.file}: it was altered, or another"
                f" installation made it{_REMEDY}"
            )

    def _read(self) -> bytes | None:
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return None
        if not (match := _KEY.fullmatch(content)):
            raise BackupRejected(f"{self.file} is not a key for backups: 64 hexadecimal digits")
        return bytes.fromhex(match[1].decode())

    def _create(self) -> bytes:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = secrets.token_bytes(_KEY_BYTES)
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{key.hex()}\n")
            file.flush()
            os.fsync(descriptor)
        return key


_REMEDY = "; --trust-unsealed runs what its maker put into it, as the database's owner"


def _compute_seal(key: bytes, content: bytes) -> str:
    return hmac.new(key, content, hashlib.sha256).hexdigest()
