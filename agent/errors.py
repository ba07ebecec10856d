"""The errors between a client and the registry, and how they are read from a response."""

import math
from collections.abc import Mapping
from typing import Any

MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_REASON_LENGTH = 200

UNAUTHENTICATED, FORBIDDEN, RATE_LIMITED = "UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED"
# The registry does not mark these retryable, because a mutation may be half done. Reads may retry.
TRANSIENT_CODES = {"", "INTERNAL"}
CODES_BY_STATUS = {401: UNAUTHENTICATED, 403: FORBIDDEN, 429: RATE_LIMITED}


class RegistryError(Exception):
    """A request to the registry failed."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        """The least time to wait that the registry or a proxy asked for; at most an hour."""


class RegistryUnavailableError(RegistryError):
    """No usable answer came from the registry. The request may have been carried out or not.

    `reason` is one line for a log.
    """

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason, retry_after_seconds)
        self.reason = reason


class RegistryRestartingError(RegistryUnavailableError):
    """The registry announced that it shuts down; it, or another one, is expected back soon."""


class RequestRejectedError(RegistryError):
    """The registry answered with an error.

    `code` is the error's `extensions.code`, empty without one; `facts` holds all extensions.
    """

    def __init__(self, code: str, message: str, facts: Mapping[str, Any]) -> None:
        super().__init__(
            f"{message} ({code})" if code else message,
            _parse_retry_after(facts.get("retryAfterSeconds")),
        )
        self.code = code
        self.message = message
        self.facts = facts

    @property
    def is_retryable(self) -> bool:
        """Whether the registry says that the same request may succeed later."""
        return self.facts.get("retryable") is True


def is_final(error: RequestRejectedError) -> bool:
    """Return whether the same read would be rejected again. For reads only."""
    return not error.is_retryable and error.code not in TRANSIENT_CODES


def parse_errors(errors: object) -> RegistryError:
    """Return the first of the `errors` of a GraphQL response as an exception."""
    match errors:
        case [{"message": str(message), **rest}, *_]:
            extensions = rest.get("extensions")
            facts = extensions if isinstance(extensions, dict) else {}
            code = facts.get("code")
            return RequestRejectedError(
                code if isinstance(code, str) else "", shorten(message), facts
            )
    return RegistryUnavailableError("the answer is not GraphQL")


def parse_http_error(status: int | None, headers: Mapping[str, str], reason: str) -> RegistryError:
    """Return an HTTP error response without a GraphQL body, mostly a proxy's, as an exception."""
    try:
        retry_after = _parse_retry_after(float(headers.get("Retry-After", 0)))
    except (ValueError, LookupError):
        retry_after = 0.0  # a date, or several values: the agent's own back-off is enough
    if status in CODES_BY_STATUS:
        code = CODES_BY_STATUS[status]
        facts = {"retryable": code == RATE_LIMITED, "retryAfterSeconds": retry_after}
        return RequestRejectedError(code, f"HTTP {status}", facts)
    return RegistryUnavailableError(shorten(reason), retry_after)


def _parse_retry_after(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return min(max(float(value), 0.0), MAX_RETRY_AFTER_SECONDS)


def shorten(reason: str) -> str:
    """Return one printable line of at most 200 characters: gql puts whole pages in its errors."""
    line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return line if len(line) <= MAX_REASON_LENGTH else f"{line[:MAX_REASON_LENGTH]}…"
