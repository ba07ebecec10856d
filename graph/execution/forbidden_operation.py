"""Audit entries of operations that were forbidden before they ran."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

from graphql import FieldNode, value_from_ast_untyped
from strawberry.utils.str_converters import to_camel_case

from db.core.errors import Forbidden
from db.core.identity import Caller
from graph.api.audited_field import AuditedField
from graph.api.field_declarations import iterate_root_fields
from graph.execution.document_cache import Operation
from graph.live.rejection_log import RejectionLog

MAX_ATTEMPTS = 10
"""Entries of one operation."""


async def record_forbidden(
    rejections: RejectionLog,
    caller: Caller,
    operation: Operation,
    variables: Mapping[str, Any] | None,
) -> None:
    """Record the audited root fields of a valid operation that the caller may not run."""
    document = operation.document
    root = document.schema.get_root_type(operation.kind)
    assert root is not None  # noqa: S101  # a valid operation has one
    attempts = []
    for node in islice(iterate_root_fields(document.node, operation.node), MAX_ATTEMPTS):
        field = root.fields.get(node.name.value)  # None for introspection
        definition = field and field.extensions["strawberry-definition"]
        for extension in definition.extensions if definition else ():
            if isinstance(extension, AuditedField):
                sent = _read_input(node, variables)
                values = {name: sent.get(to_camel_case(name)) for name in extension.subject}
                attempts.append(extension.describe_attempt(values))
    await rejections.record(caller, Forbidden.code, attempts)


def _read_input(field: FieldNode, variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the input as it was sent: literals were only type-checked, variables not at all."""
    for argument in field.arguments or ():
        if argument.name.value == "input":
            with suppress(ValueError):  # a number of too many digits
                value = value_from_ast_untyped(argument.value, dict(variables or {}))
                return value if isinstance(value, Mapping) else {}
    return {}
