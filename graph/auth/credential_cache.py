"""Who shows which key: asked of the database once, kept, and looked after until it ends.

A key that was revoked, or whose time is over, is noticed by every process at its next look.
"""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import UUID
from weakref import WeakSet

import structlog

from db.access import tokens
from db.core import token_format
from db.core.database import Database
from db.core.errors import Unauthenticated, Unavailable
from db.core.identity import Identity
from graph.auth.jwt_verifier import JwtVerifier
from graph.core.single_flight import SingleFlight

log = structlog.get_logger()

MAX_KEPT = 50_000
RECORD_USE_SECONDS = 60.0
GRANT_ENDED = "the credentials were revoked, or their time is over"


class Grant:
    """That an identity was shown; `ended` once that no longer counts."""

    __slots__ = ("__weakref__", "_watchers", "ended", "ends_at", "identity")

    def __init__(self, identity: Identity, ends_at: datetime | None = None) -> None:
        self.identity = identity
        self.expires_at = ends_at
        self.ended = False
        self._watchers: set[Callable[[], object]] = set()

    def end(self) -> None:
        self.ended = True
        for watcher in list(self._watchers):
            watcher()

    def watch(self, when_ended: Callable[[], object]) -> None:
        """Calls it when the grant ends, or now if it has."""
        if self.ended:
            when_ended()
        else:
            self._watchers.add(when_ended)

    def unwatch(self, when_ended: Callable[[], object]) -> None:
        self._watchers.discard(when_ended)


class CredentialCache:
    """`check_seconds` pass between two looks at what is kept.

    That a key is used is recorded once a minute, not at each use.
    """

    def __init__(
        self, database: Database, verifier: JwtVerifier | None, *, check_seconds: float
    ) -> None:
        """Without a verifier no token of another issuer is good."""
        self._database = database
        self._verifier = verifier
        self._check_seconds = check_seconds
        self._kept: SingleFlight[bytes, Grant] = SingleFlight(MAX_KEPT)
        self._granted: WeakSet[Grant] = WeakSet()  # whoever still holds one, kept or not
        self._used: dict[UUID, datetime] = {}

    def find_grant(self, shown: str) -> Grant | None:
        """What was granted for it already, if that still counts."""
        grant = self._kept.get_stored(_hash_credential(shown))
        if grant is None or grant.ended:
            return None
        self._note_use(grant)
        return grant

    async def verify(self, shown: str) -> Grant:
        """Raises Unauthenticated, Forbidden for a token of another issuer that gives no role here,
        and Unavailable when the database, or that issuer, cannot be asked.
        """
        digest = _hash_credential(shown)
        grant = await self._kept.get(digest, partial(self._verify, shown))
        if grant.ended:
            self._kept.forget(digest)
            grant = await self._kept.get(digest, partial(self._verify, shown))
        self._note_use(grant)
        return grant

    def grant_certified(self, identity: Identity, ends_at: datetime) -> Grant:
        """Of what somebody else vouches for, until then."""
        grant = Grant(identity, ends_at)
        self._granted.add(grant)
        return grant

    async def run(self) -> None:
        """Looks for ever. While the database is away, what was granted goes on."""
        loop = asyncio.get_running_loop()
        recorded_at = loop.time()
        while True:
            await asyncio.sleep(self._check_seconds)
            try:
                await self.end_invalid_grants()
                if loop.time() - recorded_at >= RECORD_USE_SECONDS:
                    await self.record_uses()
                    recorded_at = loop.time()
            except Unavailable as error:
                log.warning("keys.unavailable", cause=repr(error.__cause__))

    async def end_invalid_grants(self) -> None:
        """Ends what no longer counts: of our own keys, by the database's clock."""
        now = datetime.now(UTC)
        for grant in list(self._granted):
            if grant.expires_at is not None and grant.expires_at <= now:
                self._end(grant)
        asked = {key for grant in self._granted if (key := grant.identity.token_id) is not None}
        if not asked:
            return
        async with self._database.read() as session:
            ended = await tokens.find_ended_tokens(session, list(asked))
        for grant in list(self._granted):
            if grant.identity.token_id in ended:
                self._end(grant)

    async def record_uses(self) -> None:
        used, self._used = self._used, {}
        if used:
            async with self._database.write() as session:
                await tokens.record_uses(session, used)

    async def _verify(self, shown: str) -> Grant:
        presented = token_format.parse_token(shown)
        if presented is None and self._verifier is not None:
            return self.grant_certified(*await self._verifier.verify(shown))
        if presented is None:
            raise Unauthenticated("that is no key of this registry")
        async with self._database.read() as session:
            token = await tokens.find_valid_token(session, presented)
        if token is None:
            raise Unauthenticated("the key is not known, was revoked, or its time is over")
        grant = Grant(tokens.to_identity(token))
        self._granted.add(grant)
        return grant

    def _note_use(self, grant: Grant) -> None:
        if grant.identity.token_id is not None:
            self._used[grant.identity.token_id] = datetime.now(UTC)

    def _end(self, grant: Grant) -> None:
        grant.end()
        self._granted.discard(grant)
        log.info("key.ended", name=grant.identity.name)


def _hash_credential(shown: str) -> bytes:
    """What is kept does not tell the key."""
    return hashlib.sha256(shown.encode(errors="replace")).digest()
