"""Parses and validates each document once: a bounded cache, by the document's text."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    ArgumentNode,
    DocumentNode,
    GraphQLError,
    GraphQLInputType,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    ValueNode,
    ValuesOfCorrectTypeRule,
    VariableDefinitionNode,
    VisitorAction,
    parse,
    specified_rules,
)
from graphql.language import SKIP
from graphql.pyutils import print_path_list
from graphql.utilities import validate_input_literal
from strawberry.extensions import SchemaExtension
from strawberry.schema.schema import validate_document
from strawberry.types import ExecutionContext

from db.values import Role

MAX_DOCUMENTS = 256
MAX_CACHED_CHARACTERS = 16 * 1024
MAX_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class Validated:
    document: DocumentNode
    errors: list[GraphQLError]
    refused_fields: dict[int, dict[Role, str]] = field(default_factory=dict)
    """Of each operation by its node's id: whom it is refused, and for which field."""


_cache: OrderedDict[str, Validated] = OrderedDict()


def validated(schema: GraphQLSchema, query: str) -> Validated:
    """Raises GraphQLSyntaxError. There is one schema in a process: it is no part of the key."""
    known = _cache.get(query)
    if known is not None:
        _cache.move_to_end(query)
        return known
    document = parse(query, max_tokens=MAX_TOKENS)
    known = Validated(document, validate_document(schema, document, _RULES))
    if len(query) <= MAX_CACHED_CHARACTERS:
        _cache[query] = known
        if len(_cache) > MAX_DOCUMENTS:
            _cache.popitem(last=False)
    return known


class DocumentCache(SchemaExtension):
    """Also refuses what Strawberry lets pass: several operations of which none is named."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        context.parse_options["max_tokens"] = MAX_TOKENS
        with suppress(GraphQLSyntaxError):  # Strawberry finds it again, and says so
            context.graphql_document = self._validated().document
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        context.pre_execution_errors = (
            [GraphQLError("Must provide operation name: there are several operations.")]
            if _leaves_operation_open(context)
            else list(self._validated().errors)
        )
        yield

    def _validated(self) -> Validated:
        context = self.execution_context
        return validated(context.schema._schema, context.query or "")  # noqa: SLF001  # Strawberry's only way to it


class LiteralsOfCorrectTypeRule(ValuesOfCorrectTypeRule):
    """Says where in its argument a literal is wrong, in the words used of variables."""

    _holder = ""

    def enter_argument(self, node: ArgumentNode, *_: Any) -> None:
        self._holder = f"Argument '{node.name.value}'"

    def enter_variable_definition(self, node: VariableDefinitionNode, *_: Any) -> None:
        self._holder = f"Variable '${node.variable.name.value}'"

    def is_valid_value_node(
        self, node: ValueNode, input_type: GraphQLInputType | None
    ) -> VisitorAction:
        def on_error(error: GraphQLError, path: list[str | int]) -> None:
            place = print_path_list(path)
            error.message = f"{self._holder} has invalid value{place}: {error.message}"
            self.report_error(error)

        if input_type:
            validate_input_literal(
                node, input_type, on_error, hide_suggestions=self.context.hide_suggestions
            )
        return SKIP


def _leaves_operation_open(context: ExecutionContext) -> bool:
    # Strawberry keeps the name that was given nowhere else, and takes the first operation.
    if context._provided_operation_name is not None or context.graphql_document is None:  # noqa: SLF001
        return False
    operations = [
        definition
        for definition in context.graphql_document.definitions
        if isinstance(definition, OperationDefinitionNode)
    ]
    return len(operations) > 1


_RULES = tuple(
    LiteralsOfCorrectTypeRule if rule is ValuesOfCorrectTypeRule else rule
    for rule in specified_rules
)
