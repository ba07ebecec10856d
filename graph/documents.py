"""Parses and validates each document once: a bounded cache, by the document's text."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    ArgumentNode,
    DocumentNode,
    GraphQLError,
    GraphQLInputType,
    OperationDefinitionNode,
    ValueNode,
    ValuesOfCorrectTypeRule,
    VariableDefinitionNode,
    VisitorAction,
)
from graphql.language import SKIP
from graphql.pyutils import print_path_list
from graphql.utilities import validate_input_literal
from strawberry.extensions import SchemaExtension
from strawberry.types import ExecutionContext

MAX_DOCUMENTS = 256
MAX_CACHED_CHARACTERS = 16 * 1024
MAX_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class _Validated:
    document: DocumentNode
    errors: list[GraphQLError]


_cache: OrderedDict[str, _Validated] = OrderedDict()


class DocumentCache(SchemaExtension):
    """Also refuses what Strawberry lets pass: several operations of which none is named."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        context.parse_options["max_tokens"] = MAX_TOKENS
        known = _cache.get(context.query or "")
        if known is not None:
            _cache.move_to_end(context.query or "")
            context.graphql_document = known.document
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        if _leaves_operation_open(context):
            # Errors are looked at before this generator goes on, so they must be there already.
            context.pre_execution_errors = [
                GraphQLError("Must provide operation name: there are several operations.")
            ]
            yield
            return
        known = _cache.get(context.query or "")
        if known is not None:
            context.pre_execution_errors = list(known.errors)
        else:
            context.validation_rules = tuple(
                LiteralsOfCorrectTypeRule if rule is ValuesOfCorrectTypeRule else rule
                for rule in context.validation_rules
            )
        yield
        if known is None and context.query and context.graphql_document:
            errors = list(context.pre_execution_errors or [])
            _remember(context.query, _Validated(context.graphql_document, errors))


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


def _remember(query: str, validated: _Validated) -> None:
    if len(query) <= MAX_CACHED_CHARACTERS:
        _cache[query] = validated
        if len(_cache) > MAX_DOCUMENTS:
            _cache.popitem(last=False)
