"""A bounded cache of parsed and validated documents, by their hash.

Trusted documents, those of our own agent and client, can be requested by their id alone:
https://github.com/graphql/graphql-over-http, appendix A, persisted documents.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from graphql import (
    ArgumentNode,
    DocumentNode,
    GraphQLError,
    GraphQLInputType,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    ValueNode,
    ValuesOfCorrectTypeRule,
    VariableDefinitionNode,
    VisitorAction,
    specified_rules,
)
from graphql.language import SKIP
from graphql.pyutils import print_path_list
from graphql.utilities import validate_input_literal

from db.core.enums import Role
from db.core.errors import BadInput
from graph.api import field_declarations
from graph.core.errors import InvalidRequest
from graph.execution.compiled_operation import (
    CompiledOperation,
    compile_event_shape,
    compile_operation,
)
from graph.execution.compiled_output import Shape
from graph.execution.document_validation import parse_document, validate_document
from graph.execution.query_cost import measure_complexity
from graph.execution.query_limits import Complexity
from graph.execution.request import GraphQLRequest

MAX_USED = 256
MAX_ON_PROBATION = 64
MAX_KEPT_CHARACTERS = 16 * 1024

OTHER = "other"
"""The name in metrics and traces of all operations in documents that are not trusted."""

_TRUSTED = Path(__file__).parent / "trusted_documents.json"


class Operation:
    """An operation of a document; its cached properties require a valid document."""

    def __init__(self, document: "Document", node: OperationDefinitionNode) -> None:
        self.document = document
        self.node = node
        self.name = node.name.value if node.name else None
        self.kind: OperationType = node.operation
        self.metric_name = self.name if document.trusted and self.name else OTHER
        self.span = (
            f"{self.kind.value} {self.metric_name}",
            {
                "graphql.operation.type": self.kind.value,
                "graphql.operation.name": self.metric_name,
                "graphql.document.id": document.id,
            },
        )

    @cached_property
    def complexity(self) -> Complexity:
        return measure_complexity(self.document.schema, self.document.node, self.node)

    @cached_property
    def forbidden_fields(self) -> dict[Role, str]:
        """The roles that may not run it, each with the first field that it may not use."""
        return field_declarations.find_forbidden_fields(
            self.document.schema, self.document.node, self.node
        )

    @cached_property
    def is_cached_by_snapshot(self) -> bool:
        """Whether its result is the same until the next refresh of the node snapshot."""
        return field_declarations.is_cached_by_snapshot(self.document.schema, self.node)

    @cached_property
    def compiled(self) -> CompiledOperation | None:
        """The compiled form; None if only the executor can run it."""
        return compile_operation(self.document.schema, self.node)

    @cached_property
    def event_shape(self) -> Shape | None:
        """The shape of a subscription's events; None if only the executor can encode them."""
        return compile_event_shape(self.document.schema, self.node)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed document; it is valid if `errors` is empty."""

    id: str
    schema: GraphQLSchema
    node: DocumentNode
    errors: list[GraphQLError]
    trusted: bool = False
    _operations: dict[str | None, Operation] = field(default_factory=dict)

    def select_operation(self, name: str | None) -> Operation:
        """Return the operation of that name, or the only one. Raises InvalidRequest."""
        operation = self._operations.get(name)
        if operation is None:
            operation = self._operations[name] = Operation(self, self._find(name))
        return operation

    def _find(self, name: str | None) -> OperationDefinitionNode:
        nodes = [
            node for node in self.node.definitions if isinstance(node, OperationDefinitionNode)
        ]
        if name is not None:
            nodes = [node for node in nodes if node.name and node.name.value == name]
            if not nodes:
                raise InvalidRequest(f"there is no operation {name!r}", field="operationName")
        if not nodes:
            raise InvalidRequest("there is no operation in the document", field="query")
        if len(nodes) > 1:
            raise InvalidRequest("there are several operations: name one", field="operationName")
        return nodes[0]


class DocumentCache:
    """Keeps requested trusted documents for the life of the process, others while they are used.

    A document that was used once is on probation, from where only others on probation evict it: a
    flood of documents that are never used again evicts none that is in use.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        trusted: Iterable[str] = (),
        *,
        max_tokens: int = 1000,
        shows_schema: bool = True,
    ) -> None:
        self._schema = schema
        self._max_tokens = max_tokens
        self._shows_schema = shows_schema
        self._trusted = {compute_document_id(text): text for text in trusted}
        self._parsed_trusted: dict[str, Document] = {}
        self._used: OrderedDict[str, Document] = OrderedDict()
        self._on_probation: OrderedDict[str, Document] = OrderedDict()

    def get_document(self, request: GraphQLRequest) -> Document:
        """Return the document of a request, parsed and validated.

        Raises GraphQLSyntaxError, QueryTooComplex, and BadInput for an unknown id.
        """
        if request.document_id is None:
            return self._get_by_text(request.query or "")
        if request.document_id not in self._trusted:
            problem = "is not known: send the document itself, as `query`"
            raise BadInput("documentId", problem)
        return self._get_trusted(request.document_id)

    def _get_by_text(self, text: str) -> Document:
        key = compute_document_id(text)
        if key in self._trusted:
            return self._get_trusted(key)
        if key in self._used:
            self._used.move_to_end(key)
            return self._used[key]
        if key in self._on_probation:
            self._used[key] = self._on_probation.pop(key)
            if len(self._used) > MAX_USED:
                self._used.popitem(last=False)
            return self._used[key]
        document = self._parse(key, text)
        if len(text) <= MAX_KEPT_CHARACTERS:
            self._on_probation[key] = document
            if len(self._on_probation) > MAX_ON_PROBATION:
                self._on_probation.popitem(last=False)
        return document

    def _get_trusted(self, key: str) -> Document:
        if key not in self._parsed_trusted:
            self._parsed_trusted[key] = self._parse(key, self._trusted[key], trusted=True)
        return self._parsed_trusted[key]

    def _parse(self, key: str, text: str, *, trusted: bool = False) -> Document:
        node = parse_document(text, max_tokens=self._max_tokens)
        errors = validate_document(self._schema, node, _RULES, shows_schema=self._shows_schema)
        return Document(key, self._schema, node, errors, trusted)


def load_trusted_documents() -> list[str]:
    """Return the documents of our own agent and client, as `make documents` wrote them."""
    by_id: dict[str, str] = orjson.loads(_TRUSTED.read_bytes())
    return list(by_id.values())


def compute_document_id(text: str) -> str:
    """Return the document's identifier as the appendix on persisted documents defines it."""
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


class LiteralsOfCorrectTypeRule(ValuesOfCorrectTypeRule):
    """Reports where in its argument a literal is wrong, in the format of errors in variables."""

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


_RULES = tuple(
    LiteralsOfCorrectTypeRule if rule is ValuesOfCorrectTypeRule else rule
    for rule in specified_rules
)
