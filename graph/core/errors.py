"""How errors reach a client: a documented code, facts, the request's id, and nothing internal."""

import re
from collections.abc import Mapping
from typing import Any

import structlog
from graphql import ArgumentNode, GraphQLError
from prometheus_client import Counter

from db.core.errors import RegistryError
from db.core.token_format import redact_tokens

log = structlog.get_logger()

INTERNAL = "INTERNAL"
MAX_MESSAGE_LENGTH = 500

ERROR_COUNTER = Counter(
    "node_registry_errors", "Errors that clients were told, by code.", ["code"], registry=None
)
"""Of the process: whoever tells an error knows no app."""

_INVALID_VALUE = re.compile(
    r"(?:Variable|Argument) '\$?(?P<name>\w+)' has invalid value(?: at (?P<path>[\w.\[\]]+))?: "
)
_MISSING_ARGUMENT = re.compile(r"Argument '[\w.]+\((\w+):\)' of type '[^']+' is required")
_INPUT_FIELD = re.compile(
    r"Expected value of type '\w+' (?:to include required|not to include unknown) field '(\w+)'"
)


class RateLimited(RegistryError):
    code = "RATE_LIMITED"
    retryable = True


class OperationTimedOut(RegistryError):
    """Whether it was done is not known."""

    code = "UNAVAILABLE"
    retryable = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"given up after {seconds:g} seconds")


class InvalidRequest(RegistryError):
    """The request is not GraphQL over HTTP as the specification has it; nothing was executed."""

    code = "BAD_INPUT"


def list_error_codes() -> set[str]:
    """All that a client may be told."""
    classes: list[type[RegistryError]] = [RegistryError]
    for error_class in classes:
        classes += error_class.__subclasses__()
    return {INTERNAL} | {
        error_class.code for error_class in classes if hasattr(error_class, "code")
    }


def format_errors(errors: list[GraphQLError]) -> list[dict[str, Any]]:
    """The `errors` of a response, each logged under the id that it shows."""
    formatted = [_format_error(error) for error in errors]
    for error in errors:
        drop_tracebacks(error)
    return formatted


def drop_tracebacks(error: BaseException) -> None:
    """Drops the frames that led to it, once nobody will look at them: they hold the operation and
    its connection, and often the error itself, so that only the collector would find them.
    """
    chain = [error]
    for link in chain:
        link.__traceback__ = None
        causes = link.__cause__, link.__context__, getattr(link, "original_error", None)
        chain += [
            cause for cause in causes if cause is not None and cause.__traceback__ is not None
        ]


def format_registry_error(error: RegistryError) -> list[dict[str, Any]]:
    return format_errors([GraphQLError(error.message, original_error=error)])


def _format_error(error: GraphQLError) -> dict[str, Any]:
    cause = _find_cause(error)
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    text = cause.message if isinstance(cause, RegistryError) else error.message
    message = _shorten(redact_tokens(text))
    facts: Mapping[str, object]
    if isinstance(cause, RegistryError):
        code, retryable, facts = cause.code, cause.retryable, _redact_facts(cause.details)
        log.info("request.refused", code=code, message=message)
    elif _is_client_fault(error, cause):
        code, retryable, facts = "BAD_INPUT", False, _find_field(error)
        log.info("request.refused", code=code, message=message)
    else:
        code, retryable, facts = INTERNAL, False, {}
        log.error("request.failed", path=error.path, exc_info=cause)
    ERROR_COUNTER.labels(code).inc()
    formatted: dict[str, Any] = {
        "message": "internal error; the id of the request leads to it in the log"
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
        **facts,
        "requestId": request_id,
    }
    return formatted


def _redact_facts(facts: Mapping[str, object]) -> Mapping[str, object]:
    """Whoever puts a key in the wrong place may keep what is answered in a log."""
    return {
        name: redact_tokens(value) if isinstance(value, str) else value
        for name, value in facts.items()
    }


def _shorten(message: str) -> str:
    """graphql-core quotes what it was given, however long it is."""
    return (
        message if len(message) <= MAX_MESSAGE_LENGTH else f"{message[: MAX_MESSAGE_LENGTH - 1]}…"
    )


def _is_client_fault(error: GraphQLError, cause: Exception | None) -> bool:
    """The document, its variables or its arguments are at fault: no resolver of ours failed."""
    if error.path is None:
        return cause is None or bool(error.nodes)
    # Else it is a value of ours that the schema cannot show.
    return isinstance(error.original_error, GraphQLError) and error.message.startswith("Argument '")


def _find_cause(error: GraphQLError) -> Exception | None:
    cause: Exception | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _find_field(error: GraphQLError) -> dict[str, str]:
    """The field that graphql-core complains about: it says so only in words."""
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
