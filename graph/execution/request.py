"""The parameters of a GraphQL request, the same over all transports."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, from_json

from db.core.token_format import PREFIX, cut_tokens, redact_values

MAX_VALUES = 50_000
"""JSON values in a request. The largest in use, 1,000 heartbeats with two GPUs each, has 31,000."""

_Text = Annotated[str, Field(min_length=1)]
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
    """A request as GraphQL over HTTP and graphql-transport-ws define it; other members are ignored.

    It has either a `query` or a `document_id`.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    document_id: _Text | None = Field(default=None, alias="documentId")
    query: _Text | None = Field(default=None, validate_default=True)
    operation_name: str | None = Field(default=None, alias="operationName")
    variables: dict[str, Any] | None = None
    extensions: dict[str, Any] | None = None

    @field_validator("query")
    @classmethod
    def _check_query_or_id(cls, query: str | None, others: ValidationInfo) -> str | None:
        has_id = others.data.get("document_id", "invalid") is not None
        if query is None and not has_id:
            raise PydanticCustomError("missing", "is missing")
        if query is not None and has_id:
            raise PydanticCustomError("one_too_many", "must not be given together with documentId")
        return query


def find_first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the path of the first invalid value, and what is wrong with it."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    return path, _PROBLEMS.get(problem["type"], problem["msg"])


class TooManyValues(ValueError):
    """Too many JSON values: the smallest takes two bytes to send and microseconds to check."""

    def __init__(self) -> None:
        super().__init__(f"must have at most {MAX_VALUES} values")


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Integers keep their value at any size; a float out of range is infinite. Raises ValueError that
    says where the error is, also for more than 200 levels or 4,300 digits, and TooManyValues.
    """
    # Only keys are cached: values may be secrets, which must not outlive their request.
    value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    if len(text) > 2 * MAX_VALUES:
        _check_value_count(value)
    return value


def cut_tokens_of_request(value: Any, text: str) -> Any:
    """Return the JSON of a request, which was parsed from `text`, with each token in it cut.

    A caller may put a token anywhere but in its place. Cut at the entrance, it gets into no
    response, log, trace or table, and no library can quote a part of it.
    """
    may_hold_token = PREFIX in text or "\\u" in text  # an escape may stand for any letter of it
    return redact_values(value, cut_tokens) if may_hold_token else value


def _check_value_count(value: Any) -> None:
    """Check the number of values; lists and objects count. Raises TooManyValues."""
    count, pending = 1, [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            inner = list(current.values())
        else:
            inner = current if isinstance(current, list) else []
        count += len(inner)
        if count > MAX_VALUES:
            raise TooManyValues
        pending.extend(inner)
