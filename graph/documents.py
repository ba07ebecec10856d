"""Parses and validates each document once: a bounded cache, by the document's text."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from graphql import DocumentNode, GraphQLError, OperationDefinitionNode
from strawberry.extensions import SchemaExtension

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
        known = _cache.get(context.query or "")
        if known is not None:
            context.pre_execution_errors = list(known.errors)
        yield
        errors = context.pre_execution_errors or []
        if known is None and context.query and context.graphql_document:
            _remember(context.query, _Validated(context.graphql_document, list(errors)))
        # Strawberry keeps the name that was given nowhere else, and takes the first operation.
        if not errors and context._provided_operation_name is None and context.graphql_document:  # noqa: SLF001
            operations = [
                definition
                for definition in context.graphql_document.definitions
                if isinstance(definition, OperationDefinitionNode)
            ]
            if len(operations) > 1:
                context.pre_execution_errors = [
                    GraphQLError("Must provide operation name: there are several operations.")
                ]


def _remember(query: str, validated: _Validated) -> None:
    if len(query) <= MAX_CACHED_CHARACTERS:
        _cache[query] = validated
        if len(_cache) > MAX_DOCUMENTS:
            _cache.popitem(last=False)
