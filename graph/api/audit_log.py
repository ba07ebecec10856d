"""The entries of the audit log as API objects."""

from datetime import datetime
from typing import Self

import strawberry

from db.access import audit
from db.core import tables
from graph.api.connection import Connection
from graph.api.fields import ACTOR_DESCRIPTION, field, optional
from graph.api.scalars import JSON
from graph.core import validation


@strawberry.input(
    description="Selects entries of the audit log. An entry must meet all conditions that are"
    " given."
)
class AuditFilter:
    actor: str | None = optional(f"The actor, e.g. token/alice. {ACTOR_DESCRIPTION}")
    action: str | None = optional("The action, e.g. node.deregister.")
    subject: str | None = optional("The name of what was acted on, e.g. a node id.")
    outcome: str | None = optional("ok, or an error code, e.g. FORBIDDEN.")
    since: datetime | None = optional("Entries whose last attempt was at this time or later.")
    until: datetime | None = optional("Entries recorded before this time.")

    def to_filter(self) -> audit.AuditFilter:
        texts = {
            name: validation.check_search_value(f"filter.{name}", value)
            for name in ("actor", "action", "subject", "outcome")
            if (value := getattr(self, name)) is not None
        }
        return audit.AuditFilter(**texts, since=self.since, until=self.until)


@strawberry.type(
    description="An attempt to change something, successful or rejected. An entry never changes,"
    " except that it counts attempts that are the same within the hour after it."
)
class AuditEntry:
    id: strawberry.ID = field("Unique among all entries.")
    recorded_at: datetime = field(
        "When the entry was recorded, by the database's clock: the time of the first attempt that"
        " it counts."
    )
    count: int = field(
        "How many attempts the entry counts that agree in all but the time and the request id."
    )
    last_recorded_at: datetime = field("The time of the last attempt that the entry counts.")
    actor: str = field(f"Who acted. {ACTOR_DESCRIPTION}")
    address: str | None = field(
        "The IP address of the client, forwarded by a trusted proxy or else that of the connection;"
        " null for a command line."
    )
    peer_address: str | None = field(
        "The IP address of the direct connection, which may be a proxy's; null for a command line"
        " and for entries older than this field."
    )
    action: str = field("The action, e.g. node.deregister.")
    subject: str = field(
        "The name of what was acted on, e.g. a node id; '(others)' for rejections beyond the number"
        " of entries that an actor may cause."
    )
    outcome: str = field("ok, or the code of the error that rejected the action.")
    request_id: str | None = field("The id of the first request, as in the server's log.")
    before: JSON | None = field(
        "The state before the action; null if there was none, or if the action was rejected."
    )
    after: JSON | None = field(
        "The state after the action; null if there is none, or if the action was rejected."
    )

    @classmethod
    def from_row(cls, row: tables.AuditEntry) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            recorded_at=row.recorded_at,
            count=row.count,
            last_recorded_at=row.last_recorded_at or row.recorded_at,
            actor=row.actor,
            address=row.address,
            peer_address=row.peer_address,
            action=row.action,
            subject=row.subject,
            outcome=row.outcome,
            request_id=row.request_id,
            before=None if row.before is None else JSON(row.before),
            after=None if row.after is None else JSON(row.after),
        )


@strawberry.type(name="AuditLogConnection", description="A page of the audit log, newest first.")
class AuditLogConnection(Connection[AuditEntry]):
    """A page of audit entries. The contract names it after the log, not after its entries."""
