"""How errors reach a client: a documented code, facts, the request's id, and nothing internal."""

import re
from collections.abc import Mapping
from typing import Any

import structlog
from graphql import GraphQLError, Node

from db.errors import RegistryError

log = structlog.get_logger()

INTERNAL = "INTERNAL"
_VARIABLE_PATH = re.compile(r"at '([\w.\[\]]+)'")
_VARIABLE = re.compile(r"Variable '\$(\w+)'")
_LITERAL_NAME = re.compile(r"(\w+)\s*:\s*[\[\s]*$")


class RateLimited(RegistryError):
    code = "RATE_LIMITED"
    retryable = True


class RequestRefused(RegistryError):
    """The request is not GraphQL over HTTP as the specification has it; nothing was executed."""

    code = "BAD_INPUT"


def as_response(errors: list[GraphQLError]) -> list[dict[str, Any]]:
    """The `errors` of a response, each logged under the id that it shows."""
    return [_shown(error) for error in errors]


def refusal(error: RegistryError) -> list[dict[str, Any]]:
    return as_response([GraphQLError(error.message, original_error=error)])


def _shown(error: GraphQLError) -> dict[str, Any]:
    cause = _cause(error)
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    facts: Mapping[str, object]
    if isinstance(cause, RegistryError):
        code, retryable, facts = cause.code, cause.retryable, cause.facts
        log.info("request.refused", code=code, message=cause.message)
    elif cause is None or (error.path is None and error.nodes):
        # The document, its variables or its arguments are at fault: no resolver of ours failed.
        code, retryable, facts = "BAD_INPUT", False, _field_of(error)
        log.info("request.refused", code=code, message=error.message)
    else:
        code, retryable, facts = INTERNAL, False, {}
        log.error("request.failed", path=error.path, exc_info=cause)
    shown: dict[str, Any] = {
        "message": "internal error; the id of the request leads to it in the log"
        if code == INTERNAL
        else error.message,
    }
    if error.locations:
        shown["locations"] = [location.formatted for location in error.locations]
    if error.path is not None:
        shown["path"] = error.path
    shown["extensions"] = {"code": code, "retryable": retryable, **facts, "requestId": request_id}
    return shown


def _cause(error: GraphQLError) -> Exception | None:
    cause: Exception | None = error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    return cause


def _field_of(error: GraphQLError) -> dict[str, str]:
    """The field that graphql-core complains about: it says so only in words, or by a position."""
    if found := _VARIABLE_PATH.search(error.message) or _VARIABLE.search(error.message):
        return {"field": found.group(1)}
    node: Node | None = error.nodes[0] if error.nodes else None
    if node is None or node.loc is None:
        return {}
    found = _LITERAL_NAME.search(node.loc.source.body[: node.loc.start])
    return {"field": found.group(1)} if found else {}
