"""The type Node, and pages of nodes."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

import strawberry

from db.core import tables
from db.registry import history, nodes, profiles
from db.registry.node_filter import NodeFilter
from db.registry.status_changes import NodeRow
from graph.api.connection import (
    DEFAULT_PAGE_SIZE,
    After,
    Connection,
    First,
    resolve_page_size,
)
from graph.api.context import Info
from graph.api.enums import NodeRole, NodeStatus, NodeType, ProfileType, StatusReason
from graph.api.fields import field
from graph.api.metrics_history import MetricsHour
from graph.api.scalars import JSON, IPAddress, Revision
from graph.api.types import (
    EffectiveProfile,
    Heartbeat,
    NodeMetrics,
    NodeProfile,
    StatusChange,
    show_status_changes,
)


@strawberry.type(description="A node of the network.")
class Node:
    uuid: strawberry.Private[UUID]
    last_heartbeat_id: strawberry.Private[int | None]

    id: strawberry.ID = field(
        "The registry's internal id of the node, which stays the same while the node is registered."
    )
    node_id: str = field(
        "The unique id by which agents and routers know the node, e.g. node-1-hetzner-gex44."
    )
    name: str = field("The display name of the node.")
    role: NodeRole = field("The purpose of the node.")
    type: NodeType = field("The function of the node in the network.")
    labels: list[str] = field("The labels by which the node can be selected.")
    ip_address: IPAddress | None = field("The node's public address.")
    local_ip: IPAddress | None = field("The node's address on its local network.")
    hostname: str | None = field("The hostname of the machine.")
    status: NodeStatus = field("The node's status.")
    status_reason: StatusReason = field("The reason for the status.")
    status_since: datetime = field("When the node entered the status.")
    last_heartbeat: datetime | None = field("When the node's last heartbeat was received.")
    registered_at: datetime = field("When the node was first registered.")
    updated_at: datetime = field("When the node's description or status last changed.")
    capabilities: JSON = field("The capabilities that the node reports: models, services, devices.")
    metadata: JSON = field("Other facts that the node reports.")

    @classmethod
    def from_row(cls, row: tables.Node | NodeRow) -> Self:
        return cls(
            uuid=row.id,
            last_heartbeat_id=row.last_heartbeat_id,
            id=strawberry.ID(str(row.id)),
            node_id=row.node_id,
            name=row.node_name,
            role=row.node_role,
            type=row.node_type,
            labels=row.labels,
            ip_address=None if row.ip_address is None else IPAddress(row.ip_address),
            local_ip=None if row.local_ip is None else IPAddress(row.local_ip),
            hostname=row.hostname,
            status=row.status,
            status_reason=row.status_reason,
            status_since=row.status_since,
            last_heartbeat=row.last_heartbeat,
            registered_at=row.registered_at,
            updated_at=row.updated_at,
            capabilities=JSON(row.capabilities),
            metadata=JSON(row.metadata_),
        )

    @strawberry.field(
        description="The metrics of the last heartbeat; null before the first heartbeat, and when"
        " the last one is so old that the registry no longer keeps it."
    )
    async def metrics(self, info: Info) -> NodeMetrics | None:
        if self.last_heartbeat_id is None:
            return None
        document = await info.context.loader.load(history.find_latest_metrics, self.uuid)
        return None if document is None else NodeMetrics.from_document(document)

    @strawberry.field(description="The node's own profiles, by name.")
    async def profiles(
        self,
        info: Info,
        type: Annotated[
            ProfileType | None,
            strawberry.argument(description="Returns only profiles of this type."),
        ] = None,
        enabled: Annotated[
            bool | None,
            strawberry.argument(
                description="Returns only profiles that are in use (true) or not in use (false)."
            ),
        ] = None,
    ) -> list[NodeProfile]:
        rows = await info.context.loader.load(profiles.list_node_profiles, self.uuid) or []
        return [
            NodeProfile.from_row(row)
            for row in rows
            if type in {None, row.profile_type} and enabled in {None, row.enabled}
        ]

    @strawberry.field(
        description="The enabled profiles of the node and of its role, merged by name."
    )
    async def effective_profiles(self, info: Info) -> list[EffectiveProfile]:
        merged = (
            await info.context.loader.load(profiles.compute_effective_profiles, self.uuid) or []
        )
        return [EffectiveProfile.from_merged(profile) for profile in merged]

    @strawberry.field(description="The node's heartbeats, newest first.")
    async def heartbeats(
        self,
        info: Info,
        first: First = DEFAULT_PAGE_SIZE,
        after: After = None,
        since: Annotated[
            datetime | None,
            strawberry.argument(description="Returns heartbeats received at this time or later."),
        ] = None,
        until: Annotated[
            datetime | None,
            strawberry.argument(description="Returns heartbeats received before this time."),
        ] = None,
    ) -> Connection[Heartbeat]:
        page = await info.context.loader.load(
            history.list_heartbeats,
            self.uuid,
            first=resolve_page_size(first),
            after=after,
            since=since,
            until=until,
        )
        return await Connection.from_page(
            page,
            after,
            lambda row: Heartbeat.from_row(row, self.node_id),
            lambda row: history.HEARTBEAT_ORDER.encode_cursor(row.timestamp, row.id),
        )

    @strawberry.field(
        description="The metrics of the node's heartbeats for each completed hour, newest first."
        " They are kept much longer than the heartbeats."
    )
    async def metrics_history(
        self,
        info: Info,
        first: First = DEFAULT_PAGE_SIZE,
        after: After = None,
        since: Annotated[
            datetime | None,
            strawberry.argument(description="Returns hours that began at this time or later."),
        ] = None,
        until: Annotated[
            datetime | None,
            strawberry.argument(description="Returns hours that began before this time."),
        ] = None,
    ) -> Connection[MetricsHour]:
        page = await info.context.loader.load(
            history.list_hourly_metrics,
            self.uuid,
            first=resolve_page_size(first),
            after=after,
            since=since,
            until=until,
        )
        return await Connection.from_page(
            page,
            after,
            MetricsHour.from_row,
            lambda row: history.METRICS_ORDER.encode_cursor(row.hour),
        )

    @strawberry.field(description="The node's entries in the change log, newest first.")
    async def status_changes(
        self, info: Info, first: First = DEFAULT_PAGE_SIZE, after: After = None
    ) -> Connection[StatusChange]:
        page = await info.context.loader.load(
            history.list_status_changes_by_node,
            self.uuid,
            first=resolve_page_size(first),
            after=after,
        )
        return await show_status_changes(page, after)

    @strawberry.field(
        description="The fraction of the period, 0 to 1, in which the node was ONLINE or DEGRADED."
    )
    async def availability(
        self,
        info: Info,
        since: Annotated[datetime, strawberry.argument(description="The start of the period.")],
        until: Annotated[
            datetime | None,
            strawberry.argument(
                description="The end of the period. If it is absent or in the future, the current"
                " time."
            ),
        ] = None,
    ) -> float:
        fraction = await info.context.loader.load(
            history.compute_availability, self.uuid, since=since, until=until
        )
        return fraction or 0.0


@strawberry.type(description="A page of nodes.")
class NodeConnection(Connection[Node]):
    filter: strawberry.Private[NodeFilter]

    revision: Revision = field(
        "The revision of the change log up to which the page is current, or an earlier one."
        " Follow nodeStatusChanges from here."
    )

    @strawberry.field(description="The number of nodes that the filter selects, on all pages.")
    async def total_count(self, info: Info) -> int:
        async with info.context.services.database.read() as session:
            return await nodes.count_nodes(session, self.filter)
