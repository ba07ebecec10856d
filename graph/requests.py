"""The parameters of a GraphQL request, over whatever transport it comes."""

import json
import re
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_MAYBE_BEYOND_64_BITS = re.compile(r"[0-9]{19}")
_PROBLEMS = {
    "dict_type": "must be a JSON object",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "string_too_short": "must not be empty",
    "string_type": "must be a string",
    "union_tag_invalid": "has a type that clients do not send",
    "union_tag_not_found": "has no type",
}


class GraphQLRequest(BaseModel):
    """As GraphQL over HTTP and graphql-transport-ws define it; what else is sent is ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    query: str = Field(min_length=1)
    operation_name: str | None = Field(default=None, alias="operationName")
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The path of the first value that is wrong, and what is wrong with it."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    return path, _PROBLEMS.get(problem["type"], problem["msg"])


def parse_json(text: str) -> Any:
    """Raises ValueError, saying where. A whole number stays one, however large it is."""
    value = orjson.loads(text)
    if not _MAYBE_BEYOND_64_BITS.search(text):
        return value
    # orjson makes a float of a whole number beyond 64 bits, which no longer tells what was sent.
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("depth limit exceeded") from error
