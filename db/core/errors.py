"""What the registry refuses, as facts: each error carries a code and the values it is about."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from db.core.token_format import redact_tokens


class RegistryError(Exception):
    """A refusal that a caller is told about. `code` is one of the documented ones.

    `retryable` says whether the same request may succeed later, unchanged.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, object] = facts


class BadInput(RegistryError):
    """A value is not of the documented kind; `field` is its path in the input, e.g. `labels[3]`."""

    code = "BAD_INPUT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)


class Unauthenticated(RegistryError):
    """Who asks is not known: by no credentials, or by ones that are not, or no longer, good."""

    code = "UNAUTHENTICATED"


class Forbidden(RegistryError):
    """The caller's role does not allow it."""

    code = "FORBIDDEN"


class NodeNotFound(RegistryError):
    code = "NODE_NOT_FOUND"

    def __init__(self, node_id: str) -> None:
        super().__init__(f"no node {node_id!r} is registered", nodeId=node_id)


class ProfileNotFound(RegistryError):
    """`owner` is a node's id, or a role and type."""

    code = "PROFILE_NOT_FOUND"

    def __init__(self, owner: str, name: str) -> None:
        super().__init__(f"{owner} has no profile {name!r}", owner=owner, profile=name)


class TokenNotFound(RegistryError):
    """No key that stands has this public id or name: some take the key itself for these."""

    code = "TOKEN_NOT_FOUND"

    def __init__(self, token: str) -> None:
        token = redact_tokens(token)
        super().__init__(f"no key {token!r} stands", token=token)


class VersionConflict(RegistryError):
    """Somebody else wrote it meanwhile; `current_version` is 0 where there is no such profile."""

    code = "VERSION_CONFLICT"

    def __init__(self, owner: str, name: str, current_version: int) -> None:
        super().__init__(
            f"profile {name!r} of {owner} is at version {current_version}",
            owner=owner,
            profile=name,
            currentVersion=current_version,
        )


class NodeIdTaken(RegistryError):
    """Another run of an agent holds the id and is still sending heartbeats."""

    code = "NODE_ID_TAKEN"
    retryable = True

    def __init__(
        self,
        node_id: str,
        *,
        holder_hostname: str | None,
        holder_address: str | None,
        held_since: datetime | None,
        retry_after_seconds: float,
    ) -> None:
        since = held_since and held_since.isoformat()
        super().__init__(
            f"{node_id!r} is held by {holder_hostname or 'a host without a name'}"
            f" at {holder_address or 'an unknown address'} since {since}",
            nodeId=node_id,
            holderHostname=holder_hostname,
            holderAddress=holder_address,
            heldSince=since,
            retryAfterSeconds=retry_after_seconds,
        )


class StaleBoot(RegistryError):
    """The run of the agent that sent this has been replaced by another."""

    code = "STALE_BOOT"

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"another run of the agent has registered {node_id!r} since", nodeId=node_id
        )


class Unavailable(RegistryError):
    """What the registry needs cannot be reached, or is too busy, at the moment."""

    code = "UNAVAILABLE"
    retryable = True

    def __init__(self, retry_after_seconds: float, what: str = "its database") -> None:
        super().__init__(
            f"the registry cannot reach {what} at the moment",
            retryAfterSeconds=retry_after_seconds,
        )


class EmbeddedServerFailed(Exception):
    """`problem` is one line; `log_lines` are the last that PostgreSQL said about it, if any."""

    def __init__(self, problem: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([problem, *log_lines]))
        self.problem = problem
        self.log_lines = tuple(log_lines)
