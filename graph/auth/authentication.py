"""Authentication by an Authorization header, a client certificate or a connection_init message.

In development on a loopback address no credential is needed; a credential that is sent counts
there, too.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from db.core.errors import Forbidden, Unauthenticated
from db.core.identity import ANONYMOUS, Caller, Identity
from graph.auth.client_certificate import find_certified_identity
from graph.auth.connection_limits import mark_known
from graph.auth.credential_verifier import CredentialVerifier, Grant
from graph.auth.rate_limiter import RateLimiter
from graph.auth.request_source import get_source, is_same_origin
from graph.core.headers import get_header
from graph.core.settings import Settings, is_loopback
from graph.core.validation import MAX_NAME_LENGTH
from graph.core.visible_text import replace_invisible

_SCHEME = "bearer"


class Authentication:
    """Verifies the credential of a request; `is_required` says whether a request must have one."""

    def __init__(self, settings: Settings, credential_verifier: CredentialVerifier) -> None:
        self.is_required = settings.is_authentication_required
        self._credential_verifier = credential_verifier
        self._anonymous = Grant(ANONYMOUS)
        self._requires_loopback_host = is_loopback(settings.http_host)
        self.failed_logins = RateLimiter.per_minute(
            "failed logins", settings.failed_logins_per_minute
        )

    async def authenticate_request(self, scope: Scope) -> Grant:
        """Return the grant of an HTTP request.

        Raises Unauthenticated, RateLimited, Forbidden and Unavailable.
        """
        return await self.authenticate_handshake(scope) or self._grant_anonymous(scope)

    async def authenticate_handshake(self, scope: Scope) -> Grant | None:
        """Return the grant of a handshake, None if only connection_init can have a credential.

        Raises as `authenticate_request` does.
        """
        header = get_header(scope, b"authorization")
        if header is not None:
            return await self._authenticate(header, scope)
        identity_and_expiry = find_certified_identity(scope)
        if identity_and_expiry is None:
            return None
        mark_known(scope)
        return self._credential_verifier.grant_certified(*identity_and_expiry)

    async def authenticate_init(self, scope: Scope, payload: Mapping[str, Any] | None) -> Grant:
        """Return the grant of a payload such as {"Authorization": "Bearer …"}.

        Raises as `authenticate_request` does.
        """
        for name, value in (payload or {}).items():
            if name.lower() == "authorization":
                return await self._authenticate(value if isinstance(value, str) else "", scope)
        return self._grant_anonymous(scope)

    async def _authenticate(self, header: str, scope: Scope) -> Grant:
        scheme, _, credential = header.strip().partition(" ")
        if scheme.lower() != _SCHEME or not credential:
            raise Unauthenticated("credentials must have the form: Bearer TOKEN")
        grant = self._credential_verifier.find_grant(credential)
        if grant is None:
            grant = await self._verify(credential, get_source(scope).address)
        mark_known(scope)
        return grant

    async def _verify(self, credential: str, address: str) -> Grant:
        self.failed_logins.require_available(address)
        try:
            return await self._credential_verifier.verify(credential)
        except Unauthenticated:
            self.failed_logins.charge(address)
            raise

    def _grant_anonymous(self, scope: Scope) -> Grant:
        if self.is_required:
            raise Unauthenticated("credentials are required: Authorization: Bearer TOKEN")
        # DNS rebinding: a browser may have opened a foreign page by a name that now resolves to us.
        # Such a page can send X-Forwarded-Host too, so that both names must be ours.
        hosts = (get_header(scope, b"host"), get_source(scope).host)
        if self._requires_loopback_host and not all(
            _is_loopback_name(host or "") for host in hosts
        ):
            raise Forbidden(
                "without credentials the Host must be a loopback name, as in http://127.0.0.1"
            )
        mark_known(scope)
        return self._anonymous


def require_same_origin(scope: Scope, settings: Settings) -> None:
    """Check the origin of a websocket, since browsers do not. Raises Forbidden."""
    origin = get_header(scope, b"origin")
    if origin is None or origin in settings.allowed_origins:
        return
    if not is_same_origin(origin, get_source(scope)):
        origin = replace_invisible(origin[:MAX_NAME_LENGTH])
        raise Forbidden(
            f"pages of the origin {origin} are not allowed: it is neither this registry's nor in"
            " NODE_REGISTRY_ALLOWED_ORIGINS, nor forwarded by one of NODE_REGISTRY_TRUSTED_PROXIES",
            origin=origin,
        )


def make_caller(identity: Identity, scope: Scope) -> Caller:
    """Return the caller that sent a request with this identity."""
    source = get_source(scope)
    return Caller(identity, source.address, source.peer)


def _is_loopback_name(host: str) -> bool:
    """Return whether a Host header, with its port, names a loopback address."""
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    return is_loopback(host.partition(":")[0])
