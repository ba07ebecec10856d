"""Verified credentials: looked up once, cached, and checked until they are revoked or expire.

Every process notices the end of a credential at its next check.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
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
from graph.core.item_failures import handle_items, skip_poison
from graph.core.single_flight import SingleFlight

log = structlog.get_logger()

TASK = "credential_verifier"
MAX_CACHED = 50_000
RECORD_USE_SECONDS = 60.0
GRANT_ENDED = "the credentials were revoked or have expired"


class Grant:
    """A verified credential. `ended` turns true when it is revoked or expires."""

    __slots__ = ("__weakref__", "_watchers", "ended", "expires_at", "identity")

    def __init__(self, identity: Identity, expires_at: datetime | None = None) -> None:
        self.identity = identity
        self.expires_at = expires_at
        self.ended = False
        self._watchers: set[Callable[[], object]] = set()

    def end(self) -> None:
        self.ended = True
        for watcher in list(self._watchers):
            with skip_poison(TASK, name=self.identity.name):
                watcher()

    def watch(self, on_end: Callable[[], object]) -> None:
        """Call the function when the grant ends, or now if it has."""
        if self.ended:
            on_end()
        else:
            self._watchers.add(on_end)

    def unwatch(self, on_end: Callable[[], object]) -> None:
        self._watchers.discard(on_end)


class CredentialVerifier:
    """The grants of this process, checked every `check_seconds`.

    The first use of a token is recorded at once, further ones once a minute.
    """

    def __init__(
        self, database: Database, verifier: JwtVerifier | None, *, check_seconds: float
    ) -> None:
        """Create a cache; without a verifier no JSON Web Token is accepted."""
        self._database = database
        self._verifier = verifier
        self._check_seconds = check_seconds
        self._cached: SingleFlight[bytes, Grant] = SingleFlight(MAX_CACHED)
        self._active: WeakSet[Grant] = WeakSet()  # grants in use, cached or not
        self._uses: dict[UUID, datetime] = {}

    def find_grant(self, credential: str) -> Grant | None:
        """Return the cached grant of a credential, None if there is none or it has ended."""
        grant = self._cached.get_stored(_hash_credential(credential))
        if grant is None or grant.ended:
            return None
        self._note_use(grant)
        return grant

    async def verify(self, credential: str) -> Grant:
        """Return the grant of a credential, from the cache, the database or the issuer's keys.

        Raises Unauthenticated, Forbidden for a JSON Web Token that gives no role here, and
        Unavailable when the database or the issuer does not answer.
        """
        digest = _hash_credential(credential)
        grant = await self._cached.get(digest, partial(self._verify, credential))
        if grant.ended:
            self._cached.forget(digest)
            grant = await self._cached.get(digest, partial(self._verify, credential))
        self._note_use(grant)
        return grant

    def grant_certified(self, identity: Identity, expires_at: datetime) -> Grant:
        """Return a grant for an identity that an issuer or authority certifies."""
        grant = Grant(identity, expires_at)
        self._active.add(grant)
        return grant

    async def run(self) -> None:
        """Check grants until cancelled. While the database is unavailable, grants stay valid."""
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
                log.warning("credential_verifier.unavailable", cause=repr(error.__cause__))

    async def end_invalid_grants(self) -> None:
        """End the grants that have expired or were revoked, tokens by the database's clock."""
        now = datetime.now(UTC)
        for grant in list(self._active):
            if grant.expires_at is not None and grant.expires_at <= now:
                self._end(grant)
        token_ids = {
            token_id for grant in self._active if (token_id := grant.identity.token_id) is not None
        }
        if not token_ids:
            return
        async with self._database.read() as session:
            ended_ids = await tokens.find_ended_tokens(session, list(token_ids))
        for grant in list(self._active):
            if grant.identity.token_id in ended_ids:
                self._end(grant)

    async def record_uses(self) -> None:
        """Record when each token was last used. Raises Unavailable."""
        uses, self._uses = self._uses, {}
        await handle_items(TASK, list(uses.items()), self._record_uses)

    async def _record_uses(self, uses: Sequence[tuple[UUID, datetime]]) -> None:
        async with self._database.write() as session:
            await tokens.record_uses(session, dict(uses))

    async def _verify(self, credential: str) -> Grant:
        presented = token_format.parse_token(credential)
        if presented is None and self._verifier is not None:
            return self.grant_certified(*await self._verifier.verify(credential))
        if presented is None:
            raise Unauthenticated("the token is not one of this registry")
        async with self._database.read() as session:
            token = await tokens.find_valid_token(session, presented)
        if token is None or (token.last_used_at is None and not await self._begin_use(token.id)):
            raise Unauthenticated("the token is unknown, revoked or expired")
        grant = Grant(tokens.to_identity(token))
        self._active.add(grant)
        return grant

    async def _begin_use(self, token_id: UUID) -> bool:
        """Record the first use of a token before it is answered; return whether it is valid.

        From then on the token that it replaces is not rotated again.
        """
        async with self._database.write() as session:
            return await tokens.record_first_use(session, token_id)

    def _note_use(self, grant: Grant) -> None:
        if grant.identity.token_id is not None:
            self._uses[grant.identity.token_id] = datetime.now(UTC)

    def _end(self, grant: Grant) -> None:
        grant.end()
        self._active.discard(grant)
        log.info("token.ended", name=grant.identity.name)


def _hash_credential(credential: str) -> bytes:
    """Return the cache key, which does not reveal the credential."""
    return hashlib.sha256(credential.encode(errors="replace")).digest()
