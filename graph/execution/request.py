"""The parameters of a GraphQL request, over whatever transport it comes."""

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

MAX_VALUES = 50_000
"""Of a request. The largest in use, a thousand heartbeats with two GPUs each, has 31,000."""

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
    """As GraphQL over HTTP and graphql-transport-ws define it; what else is sent is ignored.

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
    def _one_or_the_other(cls, query: str | None, others: ValidationInfo) -> str | None:
        given_by_id = others.data.get("document_id", "wrongly") is not None
        if query is None and not given_by_id:
            raise PydanticCustomError("missing", "is missing")
        if query is not None and given_by_id:
            raise PydanticCustomError("one_too_many", "must not be given beside documentId")
        return query


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The path of the first value that is wrong, and what is wrong with it."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    return path, _PROBLEMS.get(problem["type"], problem["msg"])


class TooManyValues(ValueError):
    """Each takes microseconds to check, and the smallest only two bytes."""

    def __init__(self) -> None:
        super().__init__(f"must have at most {MAX_VALUES} values")


def parse_json(text: str) -> Any:
    """Raises ValueError, saying where; also for more than 200 levels, or 4,300 digits.

    A whole number stays one, however large it is; another that is beyond all bounds is infinite.
    """
    # Values, which may be keys of callers, are to be nowhere but in their request.
    value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    if len(text) > 2 * MAX_VALUES:
        _require_few(value)
    return value


def _require_few(value: Any) -> None:
    """Raises TooManyValues. Lists and objects are values, too."""
    found, left = 1, [value]
    while left:
        each = left.pop()
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        found += len(inner)
        if found > MAX_VALUES:
            raise TooManyValues
        left.extend(inner)
