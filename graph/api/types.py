"""The object types of the API, each constructed from the row of `db` that it shows."""

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
from graph.api.fields import ACTOR_DESCRIPTION, field
from graph.api.scalars import JSON, Revision


@strawberry.type(description="The utilization and memory of one GPU at the last heartbeat.")
class GpuMetrics:
    name: str = field("The GPU's name as reported by its driver.")
    utilization_percent: float | None = field("The GPU's utilization in percent, 0 to 100.")
    memory_total_mb: float | None = field("The GPU's total memory in MB.")
    memory_free_mb: float | None = field("The GPU's free memory in MB.")
    temperature_celsius: float | None = field("The GPU's temperature in degrees Celsius.")


@strawberry.type(description="The metrics that an agent measured on its node.")
class NodeMetrics:
    cpu_percent: float | None = field("The CPU utilization in percent, 0 to 100.")
    memory_percent: float | None = field("The percentage of the memory in use, 0 to 100.")
    memory_available_mb: float | None = field("The memory available to programs, in MB.")
    disk_percent: float | None = field("The percentage of the disk in use, 0 to 100.")
    load_average: float | None = field(
        "The number of runnable processes, averaged over the last minute."
    )
    gpus: list[GpuMetrics] = field("The GPUs of the node.")
    extra: JSON = field("Other measurements that the agent sent.")

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


@strawberry.type(description="A profile of a node.")
class NodeProfile:
    id: strawberry.ID = field("The id of the profile.")
    name: str = field("The name of the profile, unique within the node.")
    type: ProfileType = field("The kind of thing that the profile configures.")
    config: JSON = field("The settings as they were written.")
    enabled: bool = field("Whether the profile is in use.")
    version: int = field(
        "A number that increases by one with each write. Send it back as expectedVersion."
    )
    created_at: datetime = field("When the profile was first written.")
    updated_at: datetime = field("When the profile was last written.")

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
    description="The role's profile of a name with the node's own profile of that name merged"
    " over it (RFC 7396). Only enabled profiles are merged."
)
class EffectiveProfile:
    name: str = field("The name of the merged profiles.")
    type: ProfileType = field(
        "The type of the node's own profile, or of the role's if the node has none."
    )
    config: JSON = field("The merged settings.")
    from_role: bool = field("Whether the node's role has a profile of this name.")
    from_node: bool = field("Whether the node has a profile of its own of this name.")

    @classmethod
    def from_merged(cls, merged: profiles.EffectiveProfile) -> Self:
        return cls(
            name=merged.name,
            type=merged.type,
            config=JSON(merged.config),
            from_role=merged.from_role,
            from_node=merged.from_node,
        )


@strawberry.type(description="An accepted heartbeat.")
class Heartbeat:
    id: strawberry.ID = field("Unique among all heartbeats.")
    node_id: str = field("The id of the node that sent the heartbeat.")
    received_at: datetime = field(
        "When the registry received the heartbeat, by the database's clock."
    )
    status: NodeStatus = field("The status of the node after the heartbeat.")
    metrics: NodeMetrics = field("The metrics in the heartbeat.")

    @classmethod
    def from_row(cls, row: tables.Heartbeat, node_id: str) -> Self:
        return cls(
            id=strawberry.ID(str(row.id)),
            node_id=node_id,
            received_at=row.timestamp,
            status=row.status,
            metrics=NodeMetrics.from_document(row.metrics),
        )


@strawberry.type(description="An entry of the change log.")
class StatusChange:
    revision: Revision = field("The revision of the entry.")
    node_id: str = field("The id of the node whose status changed.")
    previous_status: NodeStatus | None = field(
        "The previous status; null for the first entry of a node."
    )
    status: NodeStatus = field("The new status.")
    reason: StatusReason = field("The reason for the change.")
    note: str | None = field("Text given with the change, e.g. why maintenance was started.")
    actor: str = field(f"Who caused the change. {ACTOR_DESCRIPTION}")
    changed_at: datetime = field("When the status changed, by the database's clock.")

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


async def show_status_changes(
    page: Page[LoggedChange] | None, after: str | None
) -> Connection[StatusChange]:
    """Return a page of the change log, which was read with the cursor `after`."""
    return await Connection.from_page(
        page,
        after,
        StatusChange.from_change,
        lambda change: history.STATUS_CHANGE_ORDER.encode_cursor(change.revision),
    )
