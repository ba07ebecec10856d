"""The errors that callers receive: each has a code and the values it is about."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar

from db.core.token_format import redact_tokens


class RegistryError(Exception):
    """An error that the caller receives. `code` is one of the documented codes.

    `retryable` says whether the same request may succeed later, unchanged. `details` are the values
    it is about, as JSON, by the names under which the API shows them.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: Mapping[str, object] = details


class BadInput(RegistryError):
    """A value outside its documented bounds. `field` is its path in the input, e.g. `labels[3]`."""

    code = "BAD_INPUT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)


class Unauthenticated(RegistryError):
    """The caller has no credential, or one that is not valid, or no longer."""

    code = "UNAUTHENTICATED"


class Forbidden(RegistryError):
    """The caller's role does not allow it."""

    code = "FORBIDDEN"


class NodeNotFound(RegistryError):
    code = "NODE_NOT_FOUND"

    def __init__(self, node_id: str) -> None:
        super().__init__(f"no node {node_id!r} is registered", nodeId=node_id)


class ProfileNotFound(RegistryError):
    """No such profile. `owner` is a node's id, or a role and type."""

    code = "PROFILE_NOT_FOUND"

    def __init__(self, owner: str, name: str) -> None:
        super().__init__(f"{owner} has no profile {name!r}", owner=owner, profile=name)


class TokenNotFound(RegistryError):
    """No valid token has this public id or name. Some callers give the token's text instead."""

    code = "TOKEN_NOT_FOUND"

    def __init__(self, token: str) -> None:
        token = redact_tokens(token)
        super().__init__(f"no token {token!r} is valid", token=token)


class VersionConflict(RegistryError):
    """Another caller wrote the profile meanwhile. `current_version` is 0 if it does not exist."""

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
    """The run of the agent that sent this was replaced by another run."""

    code = "STALE_BOOT"

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"another run of the agent has registered {node_id!r} since", nodeId=node_id
        )


class Unavailable(RegistryError):
    """`dependency`, which the registry needs, cannot be reached at the moment, or is too busy."""

    code = "UNAVAILABLE"
    retryable = True

    def __init__(self, retry_after_seconds: float, dependency: str = "its database") -> None:
        super().__init__(
            f"the registry cannot reach {dependency} at the moment",
            retryAfterSeconds=retry_after_seconds,
        )


class RateLimited(RegistryError):
    """Too much at once. `retryAfterSeconds`, in the details, says when more is accepted."""

    code = "RATE_LIMITED"
    retryable = True


class EmbeddedServerFailed(Exception):
    """The embedded PostgreSQL cannot run. `problem` is one line.

    `log_lines` are the last lines of PostgreSQL's log, if it wrote any.
    """

    def __init__(self, problem: str, log_lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([problem, *log_lines]))
        self.problem = problem
        self.log_lines = tuple(log_lines)
