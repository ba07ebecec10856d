"""The public keys of whoever issues tokens: a JSON Web Key Set (RFC 7517), kept up to date."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
import orjson
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from db.core.errors import Unauthenticated, Unavailable
from graph.core.file_fingerprint import fingerprint_file
from graph.core.settings import is_loopback

log = structlog.get_logger()

ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""By a key's type and curve. The key decides which algorithm it is for, never the token."""

MAX_BYTES = 256 * 1024
MAX_AGE_SECONDS = 600.0
MIN_INTERVAL_SECONDS = 10.0
"""Between two requests, however many tokens name keys that are not known."""

_FETCH_SECONDS = 5.0


class BadKeySet(Exception):
    """What was read is no set of public keys; the message says why."""


class KeySource(Protocol):
    max_age_seconds: float
    min_interval_seconds: float

    async def read(self) -> bytes | None:
        """None if it is as it was. Raises OSError, BadKeySet and httpx.HTTPError."""


class KeyFile:
    """Looked at each time, and read when it was written again."""

    max_age_seconds = 0.0
    min_interval_seconds = 0.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    async def read(self) -> bytes | None:
        seen = fingerprint_file(self._path)  # no slower than asking another thread to
        if seen == self._seen:
            return None
        self._seen = seen
        return await asyncio.to_thread(self._path.read_bytes)


class KeyAddress:
    """Asked when what it said is old, and when a token names a key that it did not say."""

    max_age_seconds = MAX_AGE_SECONDS
    min_interval_seconds = MIN_INTERVAL_SECONDS

    def __init__(self, url: str) -> None:
        self._url = url

    async def read(self) -> bytes | None:
        """Follows no redirect: the address is the one that was configured."""
        content = bytearray()
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                httpx.AsyncClient(timeout=_FETCH_SECONDS) as http,
                http.stream("GET", self._url, headers={"accept": "application/json"}) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    raise BadKeySet(f"the answer has status {answer.status_code}")
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise BadKeySet(f"the answer has more than {MAX_BYTES} bytes")
        except TimeoutError:
            raise BadKeySet(f"there was no answer within {_FETCH_SECONDS:g} s") from None
        return bytes(content)


def parse_source(said: str) -> KeySource:
    """An address or the path of a file. Raises ValueError for an address that anybody between
    here and there could answer for.
    """
    url = urlsplit(said)
    if url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or "")):
        return KeyAddress(said)
    if "://" in said:
        raise ValueError("must be an https address or the path of a file")
    return KeyFile(Path(said))


class KeySet:
    """What was read last stays while nothing better can be read."""

    def __init__(self, origin: KeySource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._origin = origin
        self._clock = clock
        self._keys: Sequence[PyJWK] = ()
        self._read_at = self._tried_at = float("-inf")
        self._complaint: str | None = None
        self._reading = asyncio.Lock()

    async def load(self) -> None:
        """Raises OSError, BadKeySet and httpx.HTTPError."""
        content = await self._origin.read()
        if content is not None:
            self._keys = parse_public_keys(content)
        self._read_at = self._tried_at = self._clock()
        self._complaint = None

    async def find(self, key_id: str | None, algorithm: object) -> PyJWK:
        """The one key that is meant. Raises Unauthenticated, and Unavailable without any keys."""
        if self._clock() - self._read_at >= self._origin.max_age_seconds:
            await self._reload()
        found = self._select(key_id, algorithm)
        if found is None:
            await self._reload()
            found = self._select(key_id, algorithm)
        if not self._keys:
            raise Unavailable(
                self._origin.min_interval_seconds, dependency="the keys of the issuer"
            )
        if found is None:
            raise Unauthenticated("the token is signed by no key of the issuer")
        return found

    def _select(self, key_id: str | None, algorithm: object) -> PyJWK | None:
        found = [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and key_id in {None, key.key_id}
        ]
        return found[0] if len(found) == 1 else None

    async def _reload(self) -> None:
        """Those who come meanwhile wait for the same answer."""
        async with self._reading:
            if self._clock() - self._tried_at < self._origin.min_interval_seconds:
                return
            try:
                await self.load()
            except (OSError, BadKeySet, httpx.HTTPError) as error:
                self._tried_at = self._clock()
                reason = str(error) or type(error).__name__
                if reason != self._complaint:
                    log.warning("jwks.unusable", reason=reason)
                self._complaint = reason


def parse_public_keys(content: bytes) -> list[PyJWK]:
    """Those that verify signatures by one of ALGORITHMS; others are passed over.

    Raises BadKeySet, also if one of them is secret: whoever can read the set could sign by it.
    """
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadKeySet(f"it is not JSON: {error}") from error
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list) or not all(isinstance(key, dict) for key in listed):
        raise BadKeySet("it has no list of keys")
    if any(key.get("kty") == "oct" or "d" in key for key in listed):
        raise BadKeySet("it has a secret key")
    keys = [_make_key(key, algorithm) for key in listed if (algorithm := _find_algorithm(key)) is not None]
    if not keys:
        raise BadKeySet(f"none of its keys is for {', '.join(ALGORITHMS.values())}")
    return keys


def _find_algorithm(key: dict[str, Any]) -> str | None:
    """None for a key that is for something else."""
    kind, curve, operations = key.get("kty"), key.get("crv"), key.get("key_ops", ["verify"])
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithm = ALGORITHMS.get((kind, curve))
    verifies = isinstance(operations, list) and "verify" in operations
    signs = key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm
    return algorithm if signs and verifies else None


def _make_key(key: dict[str, Any], algorithm: str) -> PyJWK:
    try:
        made = PyJWK(key, algorithm)
        too_short = made.Algorithm.check_key_length(made.key)
    except (PyJWTError, ValueError, TypeError) as error:
        raise BadKeySet(f"one of its keys is broken: {error}") from error
    if too_short:
        raise BadKeySet(f"one of its keys is too short: {too_short}")
    return made
