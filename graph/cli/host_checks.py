"""Checks of the machine that runs the registry: access, port, certificate and disk."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography import x509

from db.ops.check_result import Verdict, report_fault, report_ok, report_warning
from graph.core.bounded_http import AnswerTooLong, fetch
from graph.core.settings import ConfigurationError, Settings
from graph.core.version import SERVICE_NAME, VERSION
from graph.server.listener import build_url, listen, require_safe_access
from graph.server.tls_context import create_tls_context

_ANSWER_SECONDS = 5
_MAX_ANSWER_BYTES = 64 * 1024
_RENEW_BEFORE = timedelta(days=14)
_LEAST_FREE_BYTES = 1 << 30
_LEAST_FREE_SHARE = 0.1


async def check_access(settings: Settings) -> Verdict:
    try:
        require_safe_access(settings)
    except ConfigurationError as error:
        return report_fault(str(error))
    required = settings.is_authentication_required
    return report_ok(
        "callers need credentials" if required else "anyone on this machine has full access"
    )


async def check_port(settings: Settings) -> Verdict:
    """Check that a healthy registry responds on the port, or that the port is free."""
    scheme = "http" if settings.tls_certificate is None else "https"
    url = build_url(settings.http_host, settings.http_port, scheme)
    if await _is_silent(url):
        try:
            listen(settings).close()
        except OSError as error:
            return report_fault(
                f"{url}: {error.strerror or error}: set another NODE_REGISTRY_HTTP_HOST or"
                " NODE_REGISTRY_HTTP_PORT"
            )
        return report_ok(f"{url} is free: no registry is running")
    try:
        # Another check covers the certificate, which need not be valid for this host name.
        # Proxies named in the environment are for other machines.
        async with httpx.AsyncClient(
            verify=False,  # noqa: S501
            trust_env=False,
            timeout=_ANSWER_SECONDS,
        ) as http:
            async with asyncio.timeout(_ANSWER_SECONDS):
                status, body = await fetch(http, f"{url}/health", max_bytes=_MAX_ANSWER_BYTES)
        health = json.loads(body)
        serves = health["service"] == SERVICE_NAME
        failed, version = ", ".join(health["failed_tasks"]), str(health["version"])
    except (
        *(httpx.HTTPError, httpx.InvalidURL, AnswerTooLong, TimeoutError),
        *(ValueError, KeyError, TypeError, RecursionError),
    ):
        serves = False
    if not serves:
        return report_fault(f"{url} is taken by something else: stop it, or choose another port")
    if status != httpx.codes.OK:
        failed = failed or "it cannot reach its database"
        return report_fault(f"{url}: the registry is not healthy ({failed}): see its log")
    if version != VERSION:
        return report_warning(f"{url}: registry {version} serves, this is {VERSION}: restart it")
    return report_ok(f"{url}: a registry serves, and is healthy")


async def _is_silent(url: str) -> bool:
    address = httpx.URL(url)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(address.host, address.port)
        writer.close()
        return False
    return True


async def check_certificate(settings: Settings) -> Verdict:
    try:
        create_tls_context(settings)
    except ConfigurationError as error:
        return report_fault(str(error))
    files = [path for path in (settings.tls_certificate, settings.tls_client_ca) if path]
    if not files:
        return report_ok("none: plain HTTP")
    expiry, path = min((_find_expiry(path), path) for path in files)
    summary = f"{path} expires on {expiry:%Y-%m-%d %H:%M} UTC"
    left = expiry - datetime.now(UTC)
    if left < timedelta():
        return report_fault(f"{summary}: renew it; the registry then reloads it by itself")
    if left < _RENEW_BEFORE:
        return report_warning(f"{summary}: renew it; the registry then reloads it by itself")
    return report_ok(summary)


def _find_expiry(path: Path) -> datetime:
    """Return the earliest expiry of the certificates in the file."""
    chain = x509.load_pem_x509_certificates(path.read_bytes())
    return min(certificate.not_valid_after_utc for certificate in chain)


async def check_disk(settings: Settings) -> Verdict:
    if settings.external_database is not None:
        return report_ok("not checked: the database is external")
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    usage = shutil.disk_usage(folder)
    summary = f"{usage.free / 1e9:,.1f} GB of {usage.total / 1e9:,.1f} GB are free in {folder}"
    advice = "free some space, or lower NODE_REGISTRY_HEARTBEAT_LOG_MAX_AGE_SECONDS"
    if usage.free < _LEAST_FREE_BYTES:
        return report_fault(f"{summary}: {advice}")
    if usage.free < _LEAST_FREE_SHARE * usage.total:
        return report_warning(f"{summary}: {advice}")
    return report_ok(summary)


HOST_CHECKS: dict[str, Callable[[Settings], Awaitable[Verdict]]] = {
    "access": check_access,
    "port": check_port,
    "certificate": check_certificate,
    "disk": check_disk,
}
