"""Callers and the actors as which they act: one namespace, in which kinds never meet.

An actor is a kind, a slash and a name: token/grafana, node/gpu-1, jwt/ada, tls/gpu-1,
system/registry. Rates are limited, and changes and audit entries attributed, by actor.
"""

from dataclasses import dataclass
from uuid import UUID

from db.core.enums import Role

TOKEN_PREFIX = "token/"  # noqa: S105  # no secret
"""Begins the actor of whoever holds a token, followed by the token's name."""

NODE_PREFIX = "node/"
"""Begins the actor of a node with a token from its enrolment, followed by the node's id."""

JWT_PREFIX = "jwt/"
CERTIFICATE_PREFIX = "tls/"
"""Begin the actors that an issuer or an authority vouches for."""

SYSTEM_PREFIX = "system/"
"""Begins the actors that show no credential, and the registry itself."""

ACTOR_PREFIXES = (TOKEN_PREFIX, NODE_PREFIX, JWT_PREFIX, CERTIFICATE_PREFIX, SYSTEM_PREFIX)

REGISTRY_ACTOR = f"{SYSTEM_PREFIX}registry"
"""The actor of a change that the registry itself decided on."""

ANONYMOUS_ACTOR = f"{SYSTEM_PREFIX}anonymous"

COMMAND_LINE_PREFIX = f"{SYSTEM_PREFIX}cli/"
"""Begins the actor of a command, followed by the name of the user of its operating system."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller: actor, role and nodes.

    `name` is the actor, with its kind. `nodes` are the ids of the nodes that an agent speaks for;
    other roles have none. `token_id` is the row of `tokens`, if a token proved the identity.
    """

    name: str
    role: Role
    nodes: frozenset[str] = frozenset()
    token_id: UUID | None = None


ANONYMOUS = Identity(ANONYMOUS_ACTOR, Role.ADMIN)
"""Any caller of a registry that requires no credential."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An identity and the IP addresses of its request, None on the command line.

    `address` is the client's; `peer_address` is that of the direct connection, a proxy's if
    `address` was forwarded.
    """

    identity: Identity
    address: str | None = None
    peer_address: str | None = None

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def rate_key(self) -> str:
        """The key that limits count by: the actor, or an anonymous caller's address."""
        return self.address or "" if self.identity is ANONYMOUS else self.identity.name
