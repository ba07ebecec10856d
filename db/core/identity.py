"""Callers: identified by a token, a JWT or a client certificate, or anonymous."""

from dataclasses import dataclass
from uuid import UUID

from db.core.enums import Role

JWT_PREFIX = "jwt/"
CERTIFICATE_PREFIX = "tls/"
"""Prefixes of the names of identities that others vouch for. No token or node may have one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller: name, role and nodes.

    `name` stands in the change log and in the audit trail. `nodes` are the ids of the nodes that an
    agent speaks for; other roles have none. `token_id` is the row of `tokens`, if a token proved
    the identity.
    """

    name: str
    role: Role
    nodes: frozenset[str] = frozenset()
    token_id: UUID | None = None


ANONYMOUS = Identity("anonymous", Role.ADMIN)
"""Any caller of a registry that requires no credential."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An identity and the IP address that its request came from, None on the command line."""

    identity: Identity
    address: str | None = None

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def rate_key(self) -> str:
        """The name that limits count by: the identity's, or an anonymous caller's address."""
        return self.address or "" if self.identity is ANONYMOUS else self.identity.name
