"""The TLS certificates of the server, which are reloaded when their files change."""

import asyncio
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import structlog
from cryptography import x509

from graph.core.file_fingerprint import fingerprint_file
from graph.core.item_failures import skip_poison
from graph.core.settings import ConfigurationError, Settings

log = structlog.get_logger()

CHECK_SECONDS = 5.0


class UnusableCertificate(Exception):
    """A certificate cannot be used; `setting` names the file that is most likely at fault."""

    def __init__(self, setting: str, problem: object) -> None:
        super().__init__(str(problem))
        self.setting = setting


class ReloadingContext(ssl.SSLContext):
    """A context whose new connections use the certificates read last, which end at `expires_at`."""

    _current: ssl.SSLContext
    expires_at: datetime

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificate: Path, key: Path | None, client_ca: Path | None) -> None:
        """Load the files. Raises: UnusableCertificate."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._seen = self._look()
        self._current = self._load()

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection; event loops call this."""
        return self._current.wrap_bio(*arguments, **options)

    def reload_if_changed(self) -> None:
        """Reload the files if one changed; if they are unusable, log it and keep the old ones."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._current = self._load()
        except UnusableCertificate as error:
            log.error("tls.unusable", setting=error.setting, reason=str(error))  # noqa: TRY400  # the traceback would not help
        else:
            log.info("tls.renewed", certificate=str(self._certificate))

    async def watch_files(self, interval_seconds: float = CHECK_SECONDS) -> None:
        while True:
            await asyncio.sleep(interval_seconds)
            with skip_poison("tls", certificate=str(self._certificate)):
                self.reload_if_changed()

    def _look(self) -> Sequence[object]:
        return [_fingerprint(path) for path in (self._certificate, self._key, self._client_ca)]

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without this OpenSSL would ask for a password at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
            certificate = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise UnusableCertificate("tls_certificate", error) from error
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise UnusableCertificate("tls_client_ca", error) from error
            context.verify_mode = ssl.CERT_OPTIONAL  # other clients show a token
        self.expires_at = certificate.not_valid_after_utc
        return context


def create_tls_context(settings: Settings) -> ReloadingContext | None:
    """Return the context of the configured certificates, or None for plain HTTP.

    Raises: ConfigurationError: a certificate cannot be used, or a TLS setting lacks one.
    """
    if settings.tls_certificate is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(settings, name) is not None:
                raise ConfigurationError(
                    f"NODE_REGISTRY_{name.upper()}: needs NODE_REGISTRY_TLS_CERTIFICATE"
                )
        return None
    try:
        return ReloadingContext(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    except UnusableCertificate as error:
        raise ConfigurationError(f"NODE_REGISTRY_{error.setting.upper()}: {error}") from error


def _fingerprint(path: Path | None) -> object:
    """Return a value that changes when the file is written, replaced or removed."""
    try:
        return path and fingerprint_file(path)
    except OSError as error:
        return error.errno
