"""Another issuer of JWTs: its keys, and the tokens that it signs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import AllowedPrivateKeys, ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://login.example/realms/dagi", "node-registry"
ROLES = {"registry-admins": "admin", "on-call": "operator", "agents": "agent", "people": "viewer"}

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def to_jwk(key: AllowedPrivateKeys, key_id: str | None = "k", **fields: Any) -> dict[str, Any]:
    """Return the key as a JSON Web Key."""
    if isinstance(key, rsa.RSAPrivateKey):
        jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    jwk.pop("key_ops", None)
    return jwk | ({} if key_id is None else {"kid": key_id}) | fields


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def to_jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def make_claims(**claims: Any) -> dict[str, Any]:
    """Return the claims of a valid token, changed by `claims`; None omits a claim."""
    now = int(time.time())
    defaults = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "roles": ["people"]}
    return {name: value for name, value in {**defaults, **claims}.items() if value is not None}


def sign(
    key: AllowedPrivateKeys = RSA,
    algorithm: str = "RS256",
    header: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a JWT with any claims, some of which `jwt.encode` would reject."""
    payload = json.dumps(make_claims(**claims)).encode()
    return jwt.PyJWS().encode(payload, key, algorithm, {"kid": "k", **(header or {})})


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    write(path, to_jwks(to_jwk(RSA)))
    return path
