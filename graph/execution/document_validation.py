"""How documents are parsed and validated: in milliseconds, whatever they are, and telling no more
of the schema than they may.

What bounds the time is how much there is to look at. The largest document in use, GraphiQL's
introspection, has some 200 tokens.
"""

from collections.abc import Sequence

from graphql import (
    ASTValidationRule,
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    NoSchemaIntrospectionCustomRule,
    parse,
    validate,
)
from graphql.validation.rules import overlapping_fields_can_be_merged
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from graph.execution.query_limits import QueryTooComplex

MAX_CHARACTERS = 128 * 1024
"""A string is read character by character. A JSON document of the largest size still fits in."""

MAX_ERRORS = 10
"""Each may quote, and so print, the whole of an argument."""

# Fields of one name are compared with one another, and so are the fragments around them.
overlapping_fields_can_be_merged.MAX_COMPLEXITY_BUDGET = 10_000


def parse_document(query: str, *, max_tokens: int) -> DocumentNode:
    """Raises GraphQLSyntaxError, also for too many tokens, and QueryTooComplex."""
    if len(query) > MAX_CHARACTERS:
        raise QueryTooComplex("length", len(query), MAX_CHARACTERS)
    return parse(query, max_tokens=max_tokens)


def validate_document(
    schema: GraphQLSchema,
    document: DocumentNode,
    rules: Sequence[type[ASTValidationRule]],
    *,
    shows_schema: bool,
) -> list[GraphQLError]:
    """By `rules` and Strawberry's own. Without `shows_schema` there is no introspection, and no
    error says what its author may have meant.
    """
    hiding = () if shows_schema else (NoSchemaIntrospectionCustomRule,)
    return validate(
        schema,
        document,
        (*rules, *hiding, MaybeNullValidationRule, OneOfInputValidationRule),
        max_errors=MAX_ERRORS,
        hide_suggestions=not shows_schema,
    )
