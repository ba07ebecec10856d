"""The parameters of a GraphQL request, over whatever transport it comes."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


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
    return ".".join(str(part) for part in problem["loc"]), problem["msg"]
