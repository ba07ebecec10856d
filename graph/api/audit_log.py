"""The audit trail as the API shows it."""

from datetime import datetime
from typing import Self

import strawberry

from db.access import audit
from db.core import tables
from graph.api.connection import Connection
from graph.api.fields import field, optional
from graph.api.scalars import JSON
from graph.core import validation


@strawberry.input(description="Which entries are meant: all that is given must hold.")
class AuditFilter:
    actor: str | None = optional("Of this identity.")
    action: str | None = optional("Of this action, e.g. node.deregister.")
    subject: str | None = optional("Done to this, by its name, e.g. a node's id.")
    outcome: str | None = optional("ok, or an error's code, e.g. FORBIDDEN.")
    since: datetime | None = optional("From this instant on.")
    until: datetime | None = optional("Before this instant.")

    def to_filter(self) -> audit.AuditFilter:
        texts = {
            name: validation.check_search_value(f"filter.{name}", value)
            for name in ("actor", "action", "subject", "outcome")
            if (value := getattr(self, name)) is not None
        }
        return audit.AuditFilter(**texts, since=self.since, until=self.until)


@strawberry.type(description="What somebody did, or tried to do; never changed once it is written.")
class AuditEntry:
    id: strawberry.ID = field("Unique among all entries.")
    recorded_at: datetime = field("When, by the database's clock.")
    actor: str = field("Who: the authenticated identity.")
    address: str | None = field("The IP address that it came from; null at the command line.")
    action: str = field("What was done, e.g. node.deregister.")
    subject: str = field("What it was done to, by its name, e.g. a node's id.")
    outcome: str = field("ok, or the code of the error that refused it.")
    request_id: str | None = field("The id of the request, as in the log.")
    before: JSON | None = field("How it was; null where it was not there, or was refused.")
    after: JSON | None = field("How it is since; null where it is gone, or was refused.")

    @classmethod
    def from_row(cls, row: tables.AuditEntry) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            recorded_at=row.recorded_at,
            actor=row.actor,
            address=row.address,
            action=row.action,
            subject=row.subject,
            outcome=row.outcome,
            request_id=row.request_id,
            before=None if row.before is None else JSON(row.before),
            after=None if row.after is None else JSON(row.after),
        )


@strawberry.type(name="AuditLogConnection", description="A page of the audit trail, newest first.")
class AuditLogConnection(Connection[AuditEntry]):
    """A page of audit entries, whose name in the schema is not that of its entries."""
