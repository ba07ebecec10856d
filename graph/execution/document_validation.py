"""Parsing and validation of documents, in milliseconds for any document.

Limits on characters, tokens, comparisons and errors bound the time. The largest document in use,
GraphiQL's introspection, has some 200 tokens.
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
"""The parser reads strings character by character. The largest JSON document still fits."""

MAX_ERRORS = 10
"""Each error may print a whole argument."""

# Fields of one name, and the fragments around them, are compared in pairs.
overlapping_fields_can_be_merged.MAX_COMPLEXITY_BUDGET = 10_000


def parse_document(query: str, *, max_tokens: int) -> DocumentNode:
    """Parse a document.

    Raises GraphQLSyntaxError, also for too many tokens, and QueryTooComplex.
    """
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
    """Return the errors found by `rules` and Strawberry's own.

    Without `shows_schema` introspection is an error, and no error suggests names of the schema.
    """
    hiding = () if shows_schema else (NoSchemaIntrospectionCustomRule,)
    return validate(
        schema,
        document,
        (*rules, *hiding, MaybeNullValidationRule, OneOfInputValidationRule),
        max_errors=MAX_ERRORS,
        hide_suggestions=not shows_schema,
    )
