"""Errors as clients receive them: a documented code, details, the request's id, no internals."""

import re
from collections.abc import Mapping
from typing import Any

import structlog
from graphql import ArgumentNode, GraphQLError
from prometheus_client import Counter

from db.core.errors import RegistryError
from db.core.token_format import redact_tokens, redact_values

log = structlog.get_logger()

INTERNAL = "INTERNAL"
MAX_MESSAGE_LENGTH = 500

ERROR_COUNTER = Counter(
    "node_registry_errors", "Errors returned to clients, by code.", ["code"], registry=None
)
"""One counter for the process, because code that formats an error cannot reach an app."""

_INVALID_VALUE = re.compile(
    r"(?:Variable|Argument) '\$?(?P<name>\w+)' has invalid value(?: at (?P<path>[\w.\[\]]+))?: "
)
_MISSING_ARGUMENT = re.compile(r"Argument '[\w.]+\((\w+):\)' of type '[^']+' is required")
_INPUT_FIELD = re.compile(
    r"Expected value of type '\w+' (?:to include required|not to include unknown) field '(\w+)'"
)


class OperationTimedOut(RegistryError):
    """The operation took too long; whether it took effect is unknown."""

    code = "UNAVAILABLE"
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no result within {seconds:g} seconds")


class InvalidRequest(RegistryError):
    """The request breaks the GraphQL over HTTP specification; nothing was executed."""

    code = "BAD_INPUT"


def list_error_codes() -> set[str]:
    """Return every error code that a client may receive."""
    classes: list[type[RegistryError]] = [RegistryError]
    for error_class in classes:
        classes += error_class.__subclasses__()
    return {INTERNAL} | {
        error_class.code for error_class in classes if hasattr(error_class, "code")
    }


def format_errors(errors: list[GraphQLError]) -> list[dict[str, Any]]:
    """Return the `errors` of a response, and log each under the request id that it carries.

    The errors lose their tracebacks, as `drop_tracebacks` says.
    """
    formatted = [_format_error(error) for error in errors]
    for error in errors:
        drop_tracebacks(error)
    return formatted


def drop_tracebacks(error: BaseException) -> None:
    """Remove the tracebacks of an error and its causes once nothing reads them any more.

    Their frames hold the operation, its connection and often the error itself, a cycle that only
    the garbage collector would free.
    """
    chain = [error]
    for link in chain:
        link.__traceback__ = None
        causes = link.__cause__, link.__context__, getattr(link, "original_error", None)
        chain += [
            cause for cause in causes if cause is not None and cause.__traceback__ is not None
        ]


def format_registry_error(error: RegistryError) -> list[dict[str, Any]]:
    """Return the `errors` of a response to a request that failed before its execution."""
    return format_errors([GraphQLError(error.message, original_error=error)])


def _format_error(error: GraphQLError) -> dict[str, Any]:
    cause = _find_cause(error)
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    text = cause.message if isinstance(cause, RegistryError) else error.message
    message = _make_safe(text)
    details: Mapping[str, object]
    if isinstance(cause, RegistryError):
        code, retryable, details = cause.code, cause.retryable, cause.details
        log.info("request.rejected", code=code, message=message)
    elif _is_client_fault(error, cause):
        code, retryable, details = "BAD_INPUT", False, _find_field(error)
        log.info("request.rejected", code=code, message=message)
    else:
        code, retryable, details = INTERNAL, False, {}
        log.error("request.failed", path=error.path, exc_info=cause)
    ERROR_COUNTER.labels(code).inc()
    formatted: dict[str, Any] = {
        "message": "internal error: the registry's log has the details under this requestId"
        if code == INTERNAL
        else message,
    }
    if error.locations:
        formatted["locations"] = [location.formatted for location in error.locations]
    if error.path is not None:
        formatted["path"] = error.path
    formatted["extensions"] = {
        "code": code,
        "retryable": retryable,
        **details,
        "requestId": request_id,
    }
    return {name: redact_values(value, _make_safe) for name, value in formatted.items()}


def _make_safe(text: str) -> str:
    """Cut tokens out, because a caller that sends one in a wrong place may log the response.

    The text is shortened, because it may quote its input at any length.
    """
    redacted = redact_tokens(text)
    if len(redacted) <= MAX_MESSAGE_LENGTH:
        return redacted
    return f"{redacted[: MAX_MESSAGE_LENGTH - 1]}…"


def _is_client_fault(error: GraphQLError, cause: Exception | None) -> bool:
    """Return whether the document, its variables or its arguments are at fault, not a resolver."""
    if error.path is None:
        return cause is None or bool(error.nodes)
    # Any other error with a path is a value that a resolver returned and the schema cannot show.
    return isinstance(error.original_error, GraphQLError) and error.message.startswith("Argument '")


def _find_cause(error: GraphQLError) -> Exception | None:
    cause: Exception | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _find_field(error: GraphQLError) -> dict[str, str]:
    """Return the field that graphql-core reports, which it names only in its message."""
    path = _find_field_path(error)
    return {"field": path} if path else {}


def _find_field_path(error: GraphQLError) -> str | None:
    if found := _INVALID_VALUE.match(error.message):
        field = _INPUT_FIELD.match(error.message, found.end())
        return found["name"] + (found["path"] or "") + (f".{field[1]}" if field else "")
    if found := _MISSING_ARGUMENT.match(error.message):
        return found[1]
    if error.nodes and isinstance(error.nodes[0], ArgumentNode):
        return error.nodes[0].name.value
    return None
