"""JWTs of an issuer: the identity of a valid one, and the rejection of all others."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import AllowedPrivateKeys
from structlog.types import EventDict

from db.core.enums import Role
from db.core.errors import BadInput, Forbidden, Unauthenticated, Unavailable
from db.core.identity import Identity
from graph.auth.jwks import (
    MAX_AGE_SECONDS,
    MAX_BYTES,
    MIN_INTERVAL_SECONDS,
    BadKeySet,
    parse_public_keys,
)
from graph.auth.jwt_verifier import MAX_TOKEN_LENGTH, JwtVerifier, create_jwt_verifier
from graph.core import validation
from graph.core.settings import ConfigurationError, Settings, load_settings
from tests.support.issuer import (
    AUDIENCE,
    EC,
    ED,
    ISSUER,
    ROLES,
    RSA,
    make_claims,
    sign,
    to_jwk,
    to_jwks,
    write,
)

SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # to be rejected
OTHER_CURVE = ec.generate_private_key(ec.SECP384R1())
KEYS: Mapping[str, AllowedPrivateKeys] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}


def remove(path: Path) -> None:
    path.unlink()


def encode_jwt(header: Mapping[str, Any], payload: object, signature: bytes) -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def make_settings(jwks: object, **changes: Any) -> Settings:
    defaults = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_roles": ROLES}
    return load_settings(**{**defaults, "jwt_jwks": str(jwks), **changes})


async def make_verifier(jwks: object, clock: Any = time.monotonic, **changes: Any) -> JwtVerifier:
    verifier = await create_jwt_verifier(make_settings(jwks, **changes), clock=clock)
    assert verifier is not None
    return verifier


@dataclass
class Issuer:
    """A server that answers with its key set, or with any other answer."""

    url: str = ""
    answer: bytes = b""
    status: str = "200 OK"
    headers: str = ""
    hold: asyncio.Event | None = None
    requests: list[str] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(cast("asyncio.Task[None]", asyncio.current_task()))
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.hold is not None:
                await self.hold.wait()
            head = f"HTTP/1.1 {self.status}\r\n{self.headers}connection: close\r\n\r\n"
            writer.write(head.encode() + self.answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def run_issuer(*jwks: dict[str, Any]) -> AsyncIterator[Issuer]:
    issuer = Issuer(answer=to_jwks(*jwks))
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    async with server:
        issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
        yield issuer
        if issuer.hold is not None:
            issuer.hold.set()  # from Python 3.12 on the server waits for its connections
    await asyncio.gather(*issuer.serving)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_valid_token_gives_the_identity_of_its_subject_until_it_expires(
    tmp_path: Path, algorithm: str
) -> None:
    path = tmp_path / "jwks.json"
    write(path, to_jwks(*(to_jwk(key, name) for name, key in KEYS.items())))
    claimed_expiry = int(time.time()) + 600
    token = sign(KEYS[algorithm], algorithm, {"kid": algorithm}, exp=claimed_expiry)
    identity, expires_at = await (await make_verifier(path)).verify(token)
    assert identity == Identity("jwt/ada", Role.VIEWER)
    assert expires_at == datetime.fromtimestamp(claimed_expiry + 30, UTC)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://login.example"}, "another issuer"),
        ({"iss": None}, "has no iss"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "has no aud"),
        ({"aud": []}, "has no aud"),
        ({"aud": {"node-registry": 1}}, "another audience"),
        ({"exp": int(time.time()) - 31}, "expired"),
        ({"exp": None}, "has no exp"),
        ({"exp": "9999999999"}, "exp is not a number"),
        ({"exp": True}, "expired"),
        ({"exp": 1e300}, "exp is not a valid time"),
        ({"exp": float("inf")}, "not issued by"),
        ({"exp": float("nan")}, "not issued by"),
        ({"nbf": int(time.time()) + 3600}, "not valid yet"),
        ({"nbf": "later"}, "not issued by"),
        ({"iat": int(time.time()) + 3600}, "not valid yet"),
        ({"sub": None}, "has no sub"),
        ({"sub": 7}, "not issued by"),
        ({"sub": ""}, "not a valid name"),
        ({"sub": "a\nb"}, "not a valid name"),
        ({"sub": "x" * 256}, "not a valid name"),
        ({"roles": "people" * 2000}, "too long"),
    ],
)
async def test_a_signed_token_with_invalid_claims_is_rejected(
    jwks_file: Path, claims: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unauthenticated, match=reason):
        await (await make_verifier(jwks_file)).verify(sign(**claims))


@pytest.mark.parametrize(
    ("offsets", "claims"),
    [
        ({"exp": -10}, {}),
        ({"nbf": 20}, {}),
        ({"iat": 20}, {}),
        ({}, {"aud": ["others", AUDIENCE]}),
        ({"nbf": -5, "iat": -5}, {"jti": "1"}),
    ],
)
async def test_a_token_may_have_clock_skew_and_several_audiences(
    jwks_file: Path, offsets: dict[str, int], claims: dict[str, Any]
) -> None:
    now = int(time.time())
    time_claims: dict[str, Any] = {name: now + seconds for name, seconds in offsets.items()}
    identity, expires_at = await (await make_verifier(jwks_file)).verify(
        sign(**time_claims, **claims)
    )
    assert identity.role is Role.VIEWER
    assert expires_at > datetime.now(UTC)


PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def sign_with_hmac(secret: bytes, header: Mapping[str, Any]) -> str:
    unsigned = encode_jwt(header, make_claims(), b"").rpartition(".")[0]
    return encode_jwt(
        header, make_claims(), hmac.new(secret, unsigned.encode(), hashlib.sha256).digest()
    )


FORGED = {
    "none": encode_jwt({"alg": "none", "kid": "k"}, make_claims(), b""),
    "None": encode_jwt({"alg": "None", "kid": "k"}, make_claims(), b""),
    "no algorithm": encode_jwt({"kid": "k"}, make_claims(), b""),
    "an algorithm that is a list": encode_jwt({"alg": ["RS256"], "kid": "k"}, make_claims(), b""),
    "the public key as a secret": sign_with_hmac(PEM, {"alg": "HS256", "kid": "k"}),
    "the modulus as a secret": sign_with_hmac(
        to_jwk(RSA)["n"].encode(), {"alg": "HS256", "kid": "k"}
    ),
    "RS512": jwt.encode(make_claims(), RSA, "RS512", {"kid": "k"}),
    "PS256": jwt.encode(make_claims(), RSA, "PS256", {"kid": "k"}),
    "another key": sign(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "another kind of key": sign(EC, "ES256"),
    "a key that the token brings": sign(
        EC, "ES256", {"jwk": to_jwk(EC), "jku": "http://127.0.0.1:1/", "kid": "mine"}
    ),
    "another key's name": sign(header={"kid": "unknown"}),
    "a name that is a path": sign(header={"kid": "../../dev/null"}),
    "what must be understood, but is not": sign(header={"crit": ["exp2"], "exp2": 1}),
    "crit that is no list": encode_jwt(
        {"alg": "RS256", "kid": "k", "crit": "b64"}, make_claims(), b"x"
    ),
    "a detached payload": sign(header={"crit": ["b64"], "b64": True}).replace(".", "..", 1),
    "a changed payload": ".".join(
        (
            sign().split(".")[0],
            sign(roles=["registry-admins"]).split(".")[1],
            sign().split(".")[2],
        )
    ),
    "no signature": sign().rpartition(".")[0] + ".",
    "nothing": "",
    "dots": "..",
    "four parts": sign() + ".x",
    "no base64": "a b.c.d",
    "no JSON": "YQ.YQ.YQ",
    "a header that is a list": encode_jwt([1], make_claims(), b"x"),  # type: ignore[arg-type]
    "a key's name that is a number": encode_jwt({"alg": "RS256", "kid": 1}, make_claims(), b"x"),
    "many brackets": base64.urlsafe_b64encode(b"[" * 6000).rstrip(b"=").decode() + ".YQ.YQ",
    "letters of another alphabet": "ä" * 50,
    "half a letter": "\ud800.YQ.YQ",
    "a payload that is a list": jwt.PyJWS().encode(b"[1]", RSA, "RS256", {"kid": "k"}),
    "a payload that is no JSON": jwt.PyJWS().encode(b"{", RSA, "RS256", {"kid": "k"}),
    "too much": "a" * (MAX_TOKEN_LENGTH + 1),
    "ten megabytes": "a" * 10_000_000,
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_token_is_rejected(jwks_file: Path, token: str) -> None:
    with pytest.raises(Unauthenticated) as rejection:
        await (await make_verifier(jwks_file)).verify(token)
    assert len(rejection.value.message) < 100
    assert not token or token not in rejection.value.message


async def test_a_key_is_accepted_only_with_its_own_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    write(path, to_jwks(to_jwk(RSA, "k", alg="RS256"), to_jwk(EC, "e")))
    verifier = await make_verifier(path)
    for algorithm, key_id in (("ES256", "k"), ("RS256", "e"), ("EdDSA", "k")):
        with pytest.raises(Unauthenticated):
            await verifier.verify(sign(KEYS[algorithm], algorithm, {"kid": key_id}))


async def test_a_token_without_a_key_id_is_accepted_if_only_one_key_matches(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    write(path, to_jwks(to_jwk(RSA, None), to_jwk(EC, "e")))
    verifier = await make_verifier(path)
    token = jwt.encode(make_claims(), RSA, "RS256")
    assert (await verifier.verify(token))[0].name == "jwt/ada"
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write(path, to_jwks(to_jwk(RSA, "a"), to_jwk(other, "b")))
    with pytest.raises(Unauthenticated):
        await verifier.verify(token)


@pytest.mark.parametrize(
    ("claims", "changes", "role"),
    [
        ({"roles": "on-call"}, {}, Role.OPERATOR),
        ({"roles": ["people", "on-call", "unknown"]}, {}, Role.OPERATOR),
        ({"roles": ["people", "registry-admins", "on-call"]}, {}, Role.ADMIN),
        ({"roles": ["agents", "people"]}, {}, Role.VIEWER),
        ({"roles": [7, None, {"a": 1}, "people"]}, {}, Role.VIEWER),
        (
            {"realm_access": {"roles": ["on-call"]}},
            {"jwt_role_claim": "realm_access.roles"},
            Role.OPERATOR,
        ),
        (
            {"https://dagi.example/role": "on-call"},
            {"jwt_role_claim": "https://dagi.example/role"},
            Role.OPERATOR,
        ),
        ({"a": {"b.c": "on-call"}}, {"jwt_role_claim": "a.b.c"}, Role.OPERATOR),
        (
            {"scope": "read"},
            {"jwt_role_claim": "scope", "jwt_roles": {"read": "router"}},
            Role.ROUTER,
        ),
    ],
)
async def test_the_strongest_role_of_the_claim_is_used(
    jwks_file: Path, claims: dict[str, Any], changes: dict[str, Any], role: Role
) -> None:
    identity, _ = await (await make_verifier(jwks_file, **changes)).verify(sign(**claims))
    assert (identity.role, identity.nodes) == (role, frozenset())


@pytest.mark.parametrize(
    ("claims", "changes"),
    [
        ({"roles": None}, {}),
        ({"roles": []}, {}),
        ({"roles": "admin"}, {}),
        ({"roles": "PEOPLE"}, {}),
        ({"roles": "people on-call"}, {}),
        ({"roles": {"people": True}}, {}),
        ({"roles": True}, {}),
        ({"realm_access": "people"}, {"jwt_role_claim": "realm_access.roles"}),
        ({"realm_access": {"roles": None}}, {"jwt_role_claim": "realm_access.roles"}),
        ({"roles": "agents"}, {}),
        ({"roles": "agents", "nodes": []}, {}),
        ({"roles": "agents", "nodes": [1]}, {}),
    ],
)
async def test_a_valid_token_without_a_known_role_is_forbidden(
    jwks_file: Path, claims: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(Forbidden):
        await (await make_verifier(jwks_file, **changes)).verify(sign(**claims))


@pytest.mark.parametrize(
    ("claims", "changes", "nodes"),
    [
        ({"nodes": "gpu-1"}, {}, {"gpu-1"}),
        ({"nodes": ["gpu-1", "gpu-2"]}, {}, {"gpu-1", "gpu-2"}),
        ({"dagi": {"node": "gpu-1"}}, {"jwt_nodes_claim": "dagi.node"}, {"gpu-1"}),
    ],
)
async def test_an_agent_has_the_nodes_of_its_claim(
    jwks_file: Path, claims: dict[str, Any], changes: dict[str, Any], nodes: set[str]
) -> None:
    identity, _ = await (await make_verifier(jwks_file, **changes)).verify(
        sign(roles="agents", **claims)
    )
    assert identity == Identity("jwt/ada", Role.AGENT, frozenset(nodes))


@pytest.mark.parametrize("name", ["jwt/ada", "tls/gpu-1"])
def test_a_token_name_cannot_imitate_a_jwt_or_a_certificate(name: str) -> None:
    with pytest.raises(BadInput):
        validation.check_token_name("input.name", name)
    with pytest.raises(BadInput):
        validation.check_identifier("input.nodeId", name)


async def test_keys_are_fetched_from_a_url_and_cached() -> None:
    clock = Clock()
    async with run_issuer(to_jwk(RSA)) as issuer:
        verifier = await make_verifier(issuer.url, clock)
        assert issuer.requests == []
        await asyncio.gather(*(verifier.verify(sign()) for _ in range(20)))
        clock.now += MAX_AGE_SECONDS - 1
        await verifier.verify(sign())
        assert len(issuer.requests) == 1
        clock.now += 2
        await verifier.verify(sign())
        assert len(issuer.requests) == 2


async def test_an_unknown_key_id_fetches_the_keys_at_most_once_per_interval() -> None:
    clock = Clock()
    async with run_issuer(to_jwk(RSA, "old")) as issuer:
        verifier = await make_verifier(issuer.url, clock)
        await verifier.verify(sign(header={"kid": "old"}))
        issuer.answer = to_jwks(to_jwk(RSA, "old"), to_jwk(EC, "new"))
        clock.now += MIN_INTERVAL_SECONDS + 1
        await verifier.verify(sign(EC, "ES256", {"kid": "new"}))
        assert len(issuer.requests) == 2
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await verifier.verify(sign(header={"kid": f"junk-{number}"}))
        assert len(issuer.requests) == 2
        clock.now += MIN_INTERVAL_SECONDS + 1
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await verifier.verify(sign(header={"kid": f"junk-{number}"}))
        assert len(issuer.requests) == 3


async def test_a_withdrawn_key_is_rejected_after_the_next_fetch() -> None:
    clock = Clock()
    async with run_issuer(to_jwk(RSA, "leaked"), to_jwk(EC, "e")) as issuer:
        verifier = await make_verifier(issuer.url, clock)
        token = sign(header={"kid": "leaked"})
        await verifier.verify(token)
        issuer.answer = to_jwks(to_jwk(EC, "e"))
        clock.now += MAX_AGE_SECONDS + 1
        with pytest.raises(Unauthenticated):
            await verifier.verify(token)


@pytest.mark.parametrize(
    "broken",
    [
        {"answer": b"<html>"},
        {"answer": b'{"keys": []}'},
        {"answer": to_jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "k"})},
        {"answer": b" " * (MAX_BYTES + 1)},
        {"status": "500 Oops"},
        {"status": "302 Found", "headers": "location: http://127.0.0.1:1/\r\n"},
        {"status": "nonsense"},
    ],
)
async def test_the_old_keys_stay_while_no_valid_ones_can_be_fetched(
    broken: dict[str, Any], logged: list[EventDict]
) -> None:
    clock = Clock()
    async with run_issuer(to_jwk(RSA)) as issuer:
        verifier = await make_verifier(issuer.url, clock)
        await verifier.verify(sign())
        for name, value in broken.items():
            setattr(issuer, name, value)
        for _ in range(3):
            clock.now += MAX_AGE_SECONDS + 1
            await verifier.verify(sign())
        assert len(issuer.requests) == 4
    clock.now += MAX_AGE_SECONDS + 1
    await verifier.verify(sign())
    reasons = [event["reason"] for event in logged if event["event"] == "jwks.unusable"]
    assert len(reasons) == 2  # the broken answer, and then the stopped server


async def test_verification_is_unavailable_until_the_first_keys_are_fetched(
    logged: list[EventDict],
) -> None:
    clock = Clock()
    async with run_issuer(to_jwk(RSA)) as issuer:
        issuer.status = "503 Later"
        verifier = await make_verifier(issuer.url, clock)
        with pytest.raises(Unavailable, match="cannot reach the keys of the issuer") as rejection:
            await verifier.verify(sign())
        assert rejection.value.details == {"retryAfterSeconds": MIN_INTERVAL_SECONDS}
        issuer.status = "200 OK"
        with pytest.raises(Unavailable):
            await verifier.verify(sign())
        clock.now += MIN_INTERVAL_SECONDS
        await verifier.verify(sign())
    assert [event["event"] for event in logged] == ["jwks.unusable"]


async def test_an_issuer_that_does_not_answer_is_abandoned_after_a_timeout(
    monkeypatch: pytest.MonkeyPatch, logged: list[EventDict]
) -> None:
    monkeypatch.setattr("graph.auth.jwks._FETCH_SECONDS", 0.5)
    async with run_issuer(to_jwk(RSA)) as issuer:
        issuer.hold = asyncio.Event()
        verifier = await make_verifier(issuer.url)
        with pytest.raises(Unavailable):
            await verifier.verify(sign())
    assert "no response within" in logged[0]["reason"]


async def test_a_key_file_is_read_again_after_a_change(
    jwks_file: Path, logged: list[EventDict]
) -> None:
    verifier = await make_verifier(jwks_file)
    write(jwks_file, to_jwks(to_jwk(EC, "new"), to_jwk(RSA)))
    await verifier.verify(sign(EC, "ES256", {"kid": "new"}))
    write(jwks_file, b"half a fi")
    for _ in range(3):
        await verifier.verify(sign())
    remove(jwks_file)
    for _ in range(3):
        await verifier.verify(sign())
    assert [event["event"] for event in logged] == ["jwks.unusable", "jwks.unusable"]
    write(jwks_file, to_jwks(to_jwk(EC, "new")))
    with pytest.raises(Unauthenticated):
        await verifier.verify(sign())


@pytest.mark.parametrize(
    ("jwks", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "no list of keys"),
        (b'{"keys": {}}', "no list of keys"),
        (b'{"keys": ["a"]}', "no list of keys"),
        (to_jwks(), "none of its keys"),
        (to_jwks(to_jwk(RSA), {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}), "secret"),
        (to_jwks(to_jwk(RSA), to_jwk(EC) | {"d": "AAAA"}), "secret"),
        (to_jwks(to_jwk(RSA, use="enc")), "none of its keys"),
        (to_jwks(to_jwk(RSA, alg="RS512")), "none of its keys"),
        (to_jwks(to_jwk(RSA, alg="HS256")), "none of its keys"),
        (to_jwks(to_jwk(RSA, key_ops=["encrypt"])), "none of its keys"),
        (to_jwks(to_jwk(OTHER_CURVE)), "none of its keys"),
        (to_jwks({"kty": ["RSA"], "n": 1}), "none of its keys"),
        (to_jwks({"kty": "RSA", "e": "AQAB", "n": "?"}), "broken"),
        (to_jwks({"kty": "RSA", "e": "AQAB"}), "broken"),
        (to_jwks({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}), "broken"),
        (to_jwks({"kty": "OKP", "crv": "Ed25519", "x": 7}), "broken"),
        (to_jwks(to_jwk(SHORT_RSA)), "too short"),
    ],
)
def test_an_untrustworthy_key_set_is_rejected(jwks: bytes, message: str) -> None:
    with pytest.raises(BadKeySet, match=message):
        parse_public_keys(jwks)


def test_keys_for_other_purposes_are_ignored() -> None:
    jwks = to_jwks(
        to_jwk(RSA, "e", use="enc"), to_jwk(OTHER_CURVE, "c"), to_jwk(RSA, "s", use="sig")
    )
    assert [key.key_id for key in parse_public_keys(jwks)] == ["s"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jwt_audience": None}, "JWT_AUDIENCE: is required"),
        ({"jwt_issuer": None}, "JWT_ISSUER: is required"),
        ({"jwt_jwks": None}, "JWT_JWKS: is required"),
        ({"jwt_roles": {}}, "JWT_ROLES: is required"),
        ({"jwt_roles": {"a": "enrolment"}}, "JWT_ROLES: enrolment"),
        ({"jwt_jwks": "/nowhere/jwks.json"}, "JWT_JWKS: .*No such file"),
        ({"jwt_jwks": "http://login.example/jwks"}, "JWT_JWKS: must be an https address"),
        ({"jwt_jwks": "ftp://login.example/jwks"}, "JWT_JWKS: must be an https address"),
    ],
)
async def test_an_invalid_configuration_is_reported_with_its_setting(
    jwks_file: Path, changes: dict[str, Any], message: str
) -> None:
    arguments = {
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_jwks": str(jwks_file),
        "jwt_roles": ROLES,
        **changes,
    }
    with pytest.raises(ConfigurationError, match=f"^NODE_REGISTRY_{message}"):
        await create_jwt_verifier(load_settings(**arguments))


async def test_a_file_without_keys_prevents_the_start(jwks_file: Path) -> None:
    write(jwks_file, b'{"keys": []}')
    with pytest.raises(ConfigurationError, match="JWT_JWKS: none of its keys"):
        await create_jwt_verifier(make_settings(jwks_file))


async def test_no_verifier_is_created_without_an_issuer() -> None:
    assert await create_jwt_verifier(load_settings()) is None


def test_an_unknown_role_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="NODE_REGISTRY_JWT_ROLES"):
        load_settings(jwt_roles={"people": "king"})
