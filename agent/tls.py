"""The CA and client certificates of the agent, from files that may be renewed while it runs."""

import ssl
from pathlib import Path

import structlog
from httpx import create_ssl_context

from agent.settings import is_loopback

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class UnusableFileError(ValueError):
    def __init__(self, path: Path, problem: object) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class TlsConfig:
    """The TLS files of a client.

    Without `ca_file` httpx's default authorities are trusted. The private key may be in the file
    of the certificate.
    """

    def __init__(
        self, ca_file: Path | None = None, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self._ca_file, self._certificate, self._key = ca_file, certificate, key
        self._fingerprints: list[object] = []
        self._context: ssl.SSLContext | None = None

    def load_context(self, url: str) -> ssl.SSLContext:
        """Return the TLS context for a new connection to the address.

        The files are read again when they have changed, which takes some 20 ms. If they then
        cannot be used, the former context stays in use.

        Raises: UnusableFileError: a file cannot be used, and none was before.
        """
        fingerprints = [
            _fingerprint_file(path) for path in (self._ca_file, self._certificate, self._key)
        ]
        if self._context is None or fingerprints != self._fingerprints:
            try:
                # As for proxies, the environment does not apply to the agent's own machine.
                self._context = self._read(trust_env=not is_loopback(url))
            except UnusableFileError as error:
                if self._context is None:
                    raise
                log.warning("tls_files.rejected", reason=str(error))
            self._fingerprints = fingerprints
        return self._context

    def _read(self, *, trust_env: bool) -> ssl.SSLContext:
        if self._ca_file is None:
            context = create_ssl_context(trust_env=trust_env)
        else:
            try:
                context = ssl.create_default_context(cafile=self._ca_file)
            except OSError as error:
                raise UnusableFileError(self._ca_file, error) from None
        if self._certificate is None and self._key is not None:
            raise UnusableFileError(self._key, "is a private key without a certificate")
        if self._certificate is not None:
            try:
                # Without a password OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self._certificate, self._key, password="")
            except OSError as error:
                raise UnusableFileError(self._certificate, error) from None
        return context


def _fingerprint_file(path: Path | None) -> object:
    """Return a value that changes when the file is written or removed."""
    try:
        stat = path.stat() if path else None
    except OSError as error:
        return error.errno
    return stat and (stat.st_ino, stat.st_size, stat.st_mtime_ns)
