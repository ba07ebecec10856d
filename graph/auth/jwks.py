"""The public keys of a token issuer: a JSON Web Key Set (RFC 7517), kept up to date."""

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
from graph.core.bounded_http import AnswerTooLong, fetch
from graph.core.file_fingerprint import fingerprint_file
from graph.core.item_failures import report_failure
from graph.core.settings import is_loopback

log = structlog.get_logger()

ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""Algorithms by key type and curve. The key determines its algorithm, never the token."""

MAX_BYTES = 256 * 1024
MAX_AGE_SECONDS = 600.0
MIN_INTERVAL_SECONDS = 10.0
"""Time between two requests, however many tokens name unknown keys."""

_FETCH_SECONDS = 5.0


class BadKeySet(Exception):
    """A content that is no valid set of public keys; the message says why."""


class KeySource(Protocol):
    """The place that a key set is read from."""

    max_age_seconds: float
    min_interval_seconds: float

    async def read(self) -> bytes | None:
        """Return the content, None if it has not changed.

        Raises OSError, BadKeySet and httpx.HTTPError.
        """


class KeyFile:
    """A file, checked each time and read again after it was written."""

    max_age_seconds = 0.0
    min_interval_seconds = 0.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fingerprint: tuple[int, int, int] | None = None

    async def read(self) -> bytes | None:
        fingerprint = fingerprint_file(self._path)  # no slower than a call in another thread
        if fingerprint == self._fingerprint:
            return None
        self._fingerprint = fingerprint
        return await asyncio.to_thread(self._path.read_bytes)


class KeyAddress:
    """An address, requested when its keys are old or a token names an unknown key."""

    max_age_seconds = MAX_AGE_SECONDS
    min_interval_seconds = MIN_INTERVAL_SECONDS

    def __init__(self, url: str) -> None:
        self._url = url

    async def read(self) -> bytes | None:
        """Request the configured address; redirects are not followed."""
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                httpx.AsyncClient(timeout=_FETCH_SECONDS) as http,
            ):
                accept = {"accept": "application/json"}
                status, content = await fetch(http, self._url, max_bytes=MAX_BYTES, headers=accept)
        except TimeoutError:
            raise BadKeySet(f"there was no response within {_FETCH_SECONDS:g} s") from None
        except AnswerTooLong as error:
            raise BadKeySet(str(error)) from None
        if status != httpx.codes.OK:
            raise BadKeySet(f"the response has status {status}")
        return content


def parse_key_source(text: str) -> KeySource:
    """Return the source of an address or file path.

    Raises ValueError for an address without TLS, where an attacker in between could answer.
    """
    url = urlsplit(text)
    if url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or "")):
        return KeyAddress(text)
    if "://" in text:
        raise ValueError("must be an https address or the path of a file")
    return KeyFile(Path(text))


class KeySet:
    """The keys that were read last; they stay while a newer set cannot be read."""

    def __init__(self, source: KeySource, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: Sequence[PyJWK] = ()
        self._read_at = self._tried_at = float("-inf")
        self._last_error: str | None = None
        self._reload_lock = asyncio.Lock()

    async def load(self) -> None:
        """Read the keys. Raises OSError, BadKeySet and httpx.HTTPError."""
        content = await self._source.read()
        if content is not None:
            self._keys = parse_public_keys(content)
        self._read_at = self._tried_at = self._clock()
        self._last_error = None

    async def find(self, key_id: str | None, algorithm: object) -> PyJWK:
        """Return the one key with this id and algorithm.

        Raises Unauthenticated if there is none or several, Unavailable without any keys.
        """
        if self._clock() - self._read_at >= self._source.max_age_seconds:
            await self._reload()
        matching = self._find_matching(key_id, algorithm)
        if matching is None:
            await self._reload()
            matching = self._find_matching(key_id, algorithm)
        if not self._keys:
            raise Unavailable(
                self._source.min_interval_seconds, dependency="the keys of the issuer"
            )
        if matching is None:
            raise Unauthenticated("the token is signed by no key of the issuer")
        return matching

    def _find_matching(self, key_id: str | None, algorithm: object) -> PyJWK | None:
        matching = [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and key_id in {None, key.key_id}
        ]
        return matching[0] if len(matching) == 1 else None

    async def _reload(self) -> None:
        """Read the keys again, once for all callers that wait meanwhile."""
        async with self._reload_lock:
            if self._clock() - self._tried_at < self._source.min_interval_seconds:
                return
            try:
                await self.load()
            except (OSError, BadKeySet, httpx.HTTPError) as error:
                self._tried_at = self._clock()
                reason = str(error) or type(error).__name__
                if reason != self._last_error:
                    log.warning("jwks.unusable", reason=reason)
                self._last_error = reason
            except Exception as error:  # noqa: BLE001  # the issuer's answer may be anything
                self._tried_at = self._clock()
                report_failure("jwks", error)


def parse_public_keys(content: bytes) -> list[PyJWK]:
    """Return the keys that verify signatures by one of ALGORITHMS; others are skipped.

    Raises BadKeySet, also if a key is secret: everyone who can read the set could sign with it.
    """
    try:
        key_set = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadKeySet(f"it is not JSON: {error}") from error
    entries = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(entries, list) or not all(isinstance(key, dict) for key in entries):
        raise BadKeySet("it has no list of keys")
    if any(key.get("kty") == "oct" or "d" in key for key in entries):
        raise BadKeySet("it has a secret key")
    keys = [
        _make_key(key, algorithm)
        for key in entries
        if (algorithm := _find_algorithm(key)) is not None
    ]
    if not keys:
        raise BadKeySet(f"none of its keys is for {', '.join(ALGORITHMS.values())}")
    return keys


def _find_algorithm(key: dict[str, Any]) -> str | None:
    """Return the algorithm of a key for signatures, None for any other key."""
    kind, curve, operations = key.get("kty"), key.get("crv"), key.get("key_ops", ["verify"])
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithm = ALGORITHMS.get((kind, curve))
    verifies = isinstance(operations, list) and "verify" in operations
    signs = key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm
    return algorithm if signs and verifies else None


def _make_key(key: dict[str, Any], algorithm: str) -> PyJWK:
    try:
        public_key = PyJWK(key, algorithm)
        too_short = public_key.Algorithm.check_key_length(public_key.key)
    except (PyJWTError, ValueError, TypeError) as error:
        raise BadKeySet(f"one of its keys is broken: {error}") from error
    if too_short:
        raise BadKeySet(f"one of its keys is too short: {too_short}")
    return public_key
