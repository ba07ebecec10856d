"""The audit log names the action of each mutation."""

from graph.api.audited_field import AuditedField
from graph.api.schema import schema


def test_every_mutation_except_heartbeats_declares_its_action() -> None:
    root = schema.graphql.mutation_type
    assert root is not None
    without_action = {
        name
        for name, field in root.fields.items()
        if not any(
            isinstance(extension, AuditedField)
            for extension in field.extensions["strawberry-definition"].extensions
        )
    }
    assert without_action == {"recordHeartbeat", "recordHeartbeats"}
