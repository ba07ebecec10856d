"""Who asks: known by a key, a token or a certificate, or nobody in particular."""

from dataclasses import dataclass
from uuid import UUID

from db.core.enums import Role

JWT_PREFIX = "jwt/"
CERTIFICATE_PREFIX = "tls/"
"""How the names begin of those whom others vouch for. No key may be named so, and no node."""


@dataclass(frozen=True, slots=True)
class Identity:
    """`name` is what the change log and the audit trail call them.

    `nodes` are the ids of those that an agent speaks for; other roles have none. `key_id` is the
    row of `tokens` that they are known by, if any.
    """

    name: str
    role: Role
    nodes: frozenset[str] = frozenset()
    token_id: UUID | None = None


ANONYMOUS = Identity("anonymous", Role.ADMIN)
"""Whoever asks of a registry that is open to all who reach it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An identity and where it asks from: an IP address, None at the command line."""

    identity: Identity
    address: str | None = None

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def rate_key(self) -> str:
        """What limits count by: the identity, or the address of nobody in particular."""
        return self.address or "" if self.identity is ANONYMOUS else self.identity.name
