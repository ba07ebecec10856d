"""Bearer tokens of an external issuer: JSON Web Tokens (RFC 7519), verified by its public keys.

PyJWT does the cryptography. RFC 8725 lists the pitfalls.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAudienceError,
    InvalidIssuerError,
    MissingRequiredClaimError,
    PyJWTError,
)

from db.core.enums import Role
from db.core.errors import Forbidden, Unauthenticated
from db.core.identity import JWT_PREFIX, Identity
from graph.auth.jwks import ALGORITHMS, BadKeySet, KeyFile, KeySet, parse_key_source
from graph.core.settings import ConfigurationError, Settings
from graph.core.validation import MAX_NAME_LENGTH
from graph.core.visible_text import is_name

MAX_TOKEN_LENGTH = 8192

STRONGEST_FIRST = (Role.ADMIN, Role.OPERATOR, Role.VIEWER, Role.ROUTER, Role.AGENT)

_REASONS: dict[type[Exception], str] = {
    ExpiredSignatureError: "it has expired",
    ImmatureSignatureError: "it is not valid yet",
    InvalidAudienceError: "it has another audience",
    InvalidIssuerError: "it has another issuer",
}


class JwtVerifier:
    """Verifies tokens of the issuer and audience in the settings."""

    def __init__(self, settings: Settings, keys: KeySet) -> None:
        self._keys = keys
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway_seconds = settings.jwt_leeway_seconds
        self._role_claim = settings.jwt_role_claim
        self._roles = settings.jwt_roles
        self._nodes_claim = settings.jwt_nodes_claim

    async def verify(self, token: str) -> tuple[Identity, datetime]:
        """Return the identity of a token, and when it expires.

        Raises Unauthenticated for an invalid token, Forbidden for a valid one that gives no role
        here, and Unavailable while the issuer's keys are unknown.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise Unauthenticated("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            key = await self._keys.find(header.get("kid"), header.get("alg"))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS.values()),
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "sub"]},
            )
        except (PyJWTError, UnicodeError) as error:
            raise _make_invalid_token_error(error) from None
        return self._parse_identity(claims), self._parse_expiry(claims["exp"])

    def _parse_identity(self, claims: Mapping[str, Any]) -> Identity:
        name = claims["sub"]
        if len(name) > MAX_NAME_LENGTH or not is_name(name):
            raise Unauthenticated("the token's subject is not a valid name")
        role_names = set(_list_texts(get_claim(claims, self._role_claim)))
        roles = {self._roles[role_name] for role_name in role_names if role_name in self._roles}
        role = next((role for role in STRONGEST_FIRST if role in roles), None)
        if role is None:
            raise Forbidden(f"the token's {self._role_claim} give no role in this registry")
        nodes = frozenset[str]()
        if role is Role.AGENT:
            nodes = frozenset(_list_texts(get_claim(claims, self._nodes_claim)))
            if not nodes:
                raise Forbidden(f"the token's {self._nodes_claim} do not say whose agent it is for")
        return Identity(f"{JWT_PREFIX}{name}", role, nodes)

    def _parse_expiry(self, exp: object) -> datetime:
        if not isinstance(exp, int | float) or isinstance(exp, bool):
            raise Unauthenticated("the token's exp is not a number")
        try:
            return datetime.fromtimestamp(int(exp) + self._leeway_seconds, UTC)
        except (OverflowError, ValueError, OSError):
            raise Unauthenticated("the token's exp is not a valid time") from None


async def create_jwt_verifier(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic
) -> JwtVerifier | None:
    """Return the verifier of the settings, None where they configure no issuer.

    Raises ConfigurationError, also for a file without keys; an address need not respond yet.
    """
    required = {
        name: getattr(settings, name) for name in ("jwt_issuer", "jwt_audience", "jwt_jwks")
    }
    if not any(required.values()):
        return None
    for name, value in {**required, "jwt_roles": settings.jwt_roles}.items():
        if not value:
            raise ConfigurationError(
                f"NODE_REGISTRY_{name.upper()}: is required for tokens of an issuer"
            )
    if Role.ENROLMENT in settings.jwt_roles.values():
        raise ConfigurationError(
            "NODE_REGISTRY_JWT_ROLES: enrolment is a role of our own tokens only"
        )
    try:
        source = parse_key_source(required["jwt_jwks"])
        keys = KeySet(source, clock=clock)
        if isinstance(source, KeyFile):
            await keys.load()
    except (ValueError, OSError, BadKeySet) as error:
        raise ConfigurationError(f"NODE_REGISTRY_JWT_JWKS: {error}") from error
    return JwtVerifier(settings, keys)


def get_claim(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim at a path, None if there is none.

    `realm_access.roles` is the claim of that name, or else `roles` within `realm_access`.
    """
    if path in claims:
        return claims[path]
    outer, _, inner = path.partition(".")
    container = claims.get(outer)
    return get_claim(container, inner) if inner and isinstance(container, Mapping) else None


def _list_texts(value: object) -> Iterable[str]:
    """Return the strings of a string or list, without other values."""
    values = value if isinstance(value, list) else [value]
    return (text for text in values if isinstance(text, str))


def _make_invalid_token_error(error: PyJWTError | UnicodeError) -> Unauthenticated:
    """Return an error whose message, unlike the library's, does not quote the token."""
    if isinstance(error, MissingRequiredClaimError):
        return Unauthenticated(f"the token is invalid: it has no {error.claim}")
    reason = _REASONS.get(type(error), "it was not issued by the issuer")
    return Unauthenticated(f"the token is invalid: {reason}")
