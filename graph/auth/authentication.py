"""Who asks: by an Authorization header, a certificate, a websocket's connection_init, or nobody.

In development on a loopback address anybody may do anything; whoever shows credentials is held to
them there, too.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from db.core.errors import Forbidden, Unauthenticated
from db.core.identity import ANONYMOUS
from graph.auth.client_certificate import find_certified_identity
from graph.auth.credential_cache import CredentialCache, Grant
from graph.auth.rate_limiter import RateLimiter
from graph.core.headers import get_header
from graph.core.settings import Settings, is_loopback

_SCHEME = "bearer"


class Authentication:
    """`required` says whether nobody in particular is refused."""

    def __init__(self, settings: Settings, keyring: CredentialCache) -> None:
        self.is_required = settings.is_authentication_required
        self._keyring = keyring
        self._open = Grant(ANONYMOUS)
        self._by_loopback_names = is_loopback(settings.http_host)
        self.failures = RateLimiter.per_minute("failed logins", settings.failed_logins_per_minute)

    async def authenticate_request(self, scope: Scope) -> Grant:
        """Raises Unauthenticated, RateLimited, Forbidden and Unavailable."""
        return await self.authenticate_handshake(scope) or self._grant_anonymous(scope)

    async def authenticate_handshake(self, scope: Scope) -> Grant | None:
        """None where connection_init has to say more. Raises as `of_request`."""
        given = get_header(scope, b"authorization")
        if given is not None:
            return await self._authenticate(given, scope)
        certified = find_certified_identity(scope)
        return None if certified is None else self._keyring.grant_certified(*certified)

    async def authenticate_init(self, scope: Scope, payload: Mapping[str, Any] | None) -> Grant:
        """Of a payload such as {"Authorization": "Bearer …"}. Raises as `of_request`."""
        for name, value in (payload or {}).items():
            if name.lower() == "authorization":
                return await self._authenticate(value if isinstance(value, str) else "", scope)
        return self._grant_anonymous(scope)

    async def _authenticate(self, given: str, scope: Scope) -> Grant:
        scheme, _, credentials = given.strip().partition(" ")
        if scheme.lower() != _SCHEME or not credentials:
            raise Unauthenticated("credentials have the form: Bearer KEY")
        known = self._keyring.find_grant(credentials)
        if known is not None:
            return known
        address = get_client_address(scope)
        self.failures.require_available(address)
        try:
            return await self._keyring.verify(credentials)
        except Unauthenticated:
            self.failures.take(address)
            raise

    def _grant_anonymous(self, scope: Scope) -> Grant:
        if self.is_required:
            raise Unauthenticated("credentials are needed: Authorization: Bearer KEY")
        # A page of somebody else's that a browser opened by a name which now leads here.
        if self._by_loopback_names and not _is_loopback_name(get_header(scope, b"host") or ""):
            raise Forbidden("without credentials only by a loopback name, as in http://127.0.0.1")
        return self._open


def require_same_origin(scope: Scope, settings: Settings) -> None:
    """Raises Forbidden for a page of another origin that opens a websocket: browsers let it."""
    origin = get_header(scope, b"origin")
    if origin is None or origin in settings.allowed_origins:
        return
    if origin.partition("://")[2] != get_header(scope, b"host"):
        raise Forbidden(f"pages of {origin} may not ask", origin=origin)


def get_client_address(scope: Scope) -> str:
    """The caller's, or its proxy's."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_loopback_name(host: str) -> bool:
    """Of a Host header, with its port."""
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    return is_loopback(host.partition(":")[0])
