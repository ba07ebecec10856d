"""Each mutation names itself in the audit log."""

from graph.api.audited_field import AuditedField
from graph.api.schema import schema


def test_every_mutation_but_heartbeats_says_what_it_is_in_the_trail() -> None:
    root = schema.graphql.mutation_type
    assert root is not None
    silent = {
        name
        for name, field in root.fields.items()
        if not any(
            isinstance(extension, AuditedField)
            for extension in field.extensions["strawberry-definition"].extensions
        )
    }
    assert silent == {"recordHeartbeat", "recordHeartbeats"}
