"""The object types of the API, each made from the row of `db` that it shows."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

import strawberry

from db.core import tables
from db.core.pagination import Page
from db.registry import history, profiles
from db.registry.status_changes import LoggedChange
from graph.api.connection import Connection
from graph.api.enums import NodeStatus, ProfileType, StatusReason
from graph.api.fields import field
from graph.api.scalars import JSON, Revision


@strawberry.type(description="The load and memory of one GPU at the last heartbeat.")
class GpuMetrics:
    name: str = field("The GPU's name, as its driver gives it.")
    utilization_percent: float | None = field("How busy it is, 0 to 100.")
    memory_total_mb: float | None = field("Its memory, in MB.")
    memory_free_mb: float | None = field("Its free memory, in MB.")
    temperature_celsius: float | None = field("Its temperature.")


@strawberry.type(description="What an agent measured on its node.")
class NodeMetrics:
    cpu_percent: float | None = field("How busy the processors are, 0 to 100.")
    memory_percent: float | None = field("How much of the memory is in use, 0 to 100.")
    memory_available_mb: float | None = field("Memory that programs can still have, in MB.")
    disk_percent: float | None = field("How full the disk is, 0 to 100.")
    load_average: float | None = field("Runnable processes, averaged over the last minute.")
    gpus: list[GpuMetrics] = field("The GPUs of the node.")
    extra: JSON = field("Whatever else the agent sent.")

    @classmethod
    def from_document(cls, metrics: Mapping[str, Any]) -> Self:
        return cls(
            cpu_percent=metrics.get("cpu_percent"),
            memory_percent=metrics.get("memory_percent"),
            memory_available_mb=metrics.get("memory_available_mb"),
            disk_percent=metrics.get("disk_percent"),
            load_average=metrics.get("load_average"),
            gpus=[
                GpuMetrics(
                    name=gpu["name"],
                    utilization_percent=gpu.get("utilization_percent"),
                    memory_total_mb=gpu.get("memory_total_mb"),
                    memory_free_mb=gpu.get("memory_free_mb"),
                    temperature_celsius=gpu.get("temperature_celsius"),
                )
                for gpu in metrics.get("gpus", ())
            ],
            extra=metrics.get("extra", {}),
        )


@strawberry.type(description="A profile that is the node's own.")
class NodeProfile:
    id: strawberry.ID = field("The profile's own id.")
    name: str = field("Unique within the node.")
    type: ProfileType = field("What it sets up.")
    config: JSON = field("Its settings, as given.")
    enabled: bool = field("Whether it is in use.")
    version: int = field("Grows by one with each write; send it back as expectedVersion.")
    created_at: datetime = field("When it was first written.")
    updated_at: datetime = field("When it was last written.")

    @classmethod
    def from_row(cls, row: tables.NodeProfile) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            name=row.profile_name,
            type=row.profile_type,
            config=JSON(row.config),
            enabled=row.enabled,
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
        )


@strawberry.type(
    description="A role profile with the node's own profile of that name merged over it (RFC 7396)."
    " Only enabled profiles take part."
)
class EffectiveProfile:
    name: str = field("The name that the merged profiles share.")
    type: ProfileType = field("The node's own type for it, else the role's.")
    config: JSON = field("The merged settings.")
    from_role: bool = field("Whether the node's role has such a profile.")
    from_node: bool = field("Whether the node itself has such a profile.")

    @classmethod
    def from_merged(cls, merged: profiles.EffectiveProfile) -> Self:
        return cls(
            name=merged.name,
            type=merged.type,
            config=JSON(merged.config),
            from_role=merged.from_role,
            from_node=merged.from_node,
        )


@strawberry.type(description="One accepted heartbeat.")
class Heartbeat:
    id: strawberry.ID = field("Unique among all heartbeats.")
    node_id: str = field("The node that sent it.")
    received_at: datetime = field("When the registry received it, by the database's clock.")
    status: NodeStatus = field("The node's status once it was received.")
    metrics: NodeMetrics = field("What it carried.")

    @classmethod
    def from_row(cls, row: tables.Heartbeat, node_id: str) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            node_id=node_id,
            received_at=row.timestamp,
            status=row.status,
            metrics=NodeMetrics.from_document(row.metrics),
        )


@strawberry.type(description="One entry of the change log.")
class StatusChange:
    revision: Revision = field("Its place in the log.")
    node_id: str = field("The node that changed.")
    previous_status: NodeStatus | None = field("Null for the first entry of a node.")
    status: NodeStatus = field("The status since then.")
    reason: StatusReason = field("Why it changed.")
    note: str | None = field("Free text given with the change, e.g. why maintenance began.")
    actor: str = field("Who caused it: the authenticated identity, or 'registry'.")
    changed_at: datetime = field("When it changed, by the database's clock.")

    @classmethod
    def from_change(cls, change: LoggedChange) -> Self:
        return cls(
            revision=Revision(change.revision),
            node_id=change.node_id,
            previous_status=change.previous_status,
            status=change.status,
            reason=change.reason,
            note=change.note,
            actor=change.actor,
            changed_at=change.changed_at,
        )


def show_status_changes(
    page: Page[LoggedChange] | None, after: str | None
) -> Connection[StatusChange]:
    """Return a page of the change log, which was read behind the cursor `after`."""
    return Connection.from_page(
        page,
        after,
        StatusChange.from_change,
        lambda change: history.STATUS_CHANGE_ORDER.encode_cursor(change.revision),
    )
