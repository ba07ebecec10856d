"""The queries."""

from datetime import datetime
from typing import Annotated

import strawberry

from db.access import audit
from db.core.enums import NodeStatus
from db.core.pagination import require_page_size
from db.registry import history, nodes, profiles, status_changes
from db.registry.node_filter import EVERY_NODE
from db.routing.matching import NO_REQUIREMENTS
from graph.api.audit_log import AuditEntry, AuditFilter, AuditLogConnection
from graph.api.available_nodes import AvailableNodes
from graph.api.connection import DEFAULT_PAGE_SIZE, After, Connection, First, resolve_page_size
from graph.api.context import Info
from graph.api.enums import NodeOrder, NodeRanking, NodeRole, NodeType, OrderDirection, RegistryMode
from graph.api.field_declarations import declare
from graph.api.fields import field
from graph.api.filter_inputs import NodeFilter, NodeOrderInput, NodeRequirements
from graph.api.node import Node, NodeConnection
from graph.api.profiles import RoleProfile
from graph.api.scalars import Revision
from graph.api.tokens import TokenQueries
from graph.api.types import StatusChange, show_status_changes
from graph.auth.permissions import (
    ADMINS,
    EVERYBODY,
    READERS,
    READERS_AND_OWN_AGENT,
    require_own_node,
)
from graph.core import validation
from graph.core.version import STARTED_AT, VERSION

FilterArgument = Annotated[
    NodeFilter | None,
    strawberry.argument(
        description="The conditions that the nodes must meet. If absent, all nodes."
    ),
]

RequireArgument = Annotated[
    NodeRequirements | None,
    strawberry.argument(
        description="The requirements that the nodes must meet. If absent, any node that is"
        " available."
    ),
]
DEFAULT_LIMIT = 10


@strawberry.type(description="The numbers of nodes by status.")
class NodeCounts:
    total: int = field("The number of all nodes.")
    online: int = field("The number of ONLINE nodes.")
    degraded: int = field("The number of DEGRADED nodes.")
    offline: int = field("The number of OFFLINE nodes.")
    maintenance: int = field("The number of nodes in MAINTENANCE.")


@strawberry.type(description="The state of the registry.")
class Registry:
    version: str = field("The version of the server process that answers.")
    environment: str = field("development or production.")
    mode: RegistryMode = field("Whether the registry marks silent nodes OFFLINE.")
    mode_reason: str | None = field("Why the registry is in PROTECTED mode; null in NORMAL mode.")
    mode_since: datetime = field("When the registry entered the mode.")
    revision: Revision = field("The newest revision of the change log.")
    started_at: datetime = field("When the server process that answers was started.")

    @strawberry.field(description="The numbers of nodes by status.")
    async def node_counts(self, info: Info) -> NodeCounts:
        async with info.context.services.database.read() as session:
            counts = await nodes.count_nodes_by_status(session)
        return NodeCounts(
            total=sum(counts.values()),
            online=counts[NodeStatus.ONLINE],
            degraded=counts[NodeStatus.DEGRADED],
            offline=counts[NodeStatus.OFFLINE],
            maintenance=counts[NodeStatus.MAINTENANCE],
        )


@strawberry.type(description="The queries that read the registry.")
class Query(TokenQueries):
    @strawberry.field(**declare(EVERYBODY, "The state of the registry."))
    async def registry(self, info: Info) -> Registry:
        async with info.context.services.database.read() as session:
            state = await status_changes.read_state(session)
        return Registry(
            version=VERSION,
            environment=info.context.services.settings.env,
            mode=state.mode,
            mode_reason=state.mode_reason,
            mode_since=state.mode_since,
            revision=Revision(state.revision),
            started_at=STARTED_AT,
        )

    @strawberry.field(
        **declare(READERS_AND_OWN_AGENT, "A node; null if no node is registered with this id.")
    )
    async def node(
        self,
        info: Info,
        node_id: Annotated[str, strawberry.argument(description="The id of the node.")],
    ) -> Node | None:
        checked_id = validation.check_search_value("nodeId", node_id)
        require_own_node(info.context.caller, checked_id)
        async with info.context.services.database.read() as session:
            row = await nodes.find_node(session, checked_id)
        return None if row is None else Node.from_row(row)

    @strawberry.field(**declare(READERS, "The nodes that the filter selects, in pages."))
    async def nodes(
        self,
        info: Info,
        filter: FilterArgument = None,
        order_by: Annotated[
            NodeOrderInput | None,
            strawberry.argument(description="The order of the nodes. If absent, by node id."),
        ] = None,
        first: First = DEFAULT_PAGE_SIZE,
        after: After = None,
    ) -> NodeConnection:
        node_filter = EVERY_NODE if filter is None else filter.to_filter()
        order = NodeOrder.NODE_ID if order_by is None else order_by.field
        descending = order_by is not None and order_by.direction is OrderDirection.DESC
        keyset = order.to_keyset(descending=descending)
        async with info.context.services.database.read() as session:
            # Read before the page, so that a change in between is delivered twice, never missed.
            revision = await status_changes.read_revision(session)
            page = await nodes.list_nodes(
                session,
                node_filter,
                keyset,
                first=resolve_page_size(first),
                after=after,
            )
        return await NodeConnection.from_page(
            page,
            after,
            Node.from_row,
            lambda row: keyset.encode_cursor(*order.get_key(row)),
            filter=node_filter,
            revision=Revision(revision),
        )

    @strawberry.field(
        **declare(
            READERS,
            "The nodes that a router may use now, best first, at most one second old.",
            cached_by_snapshot=True,
        )
    )
    async def available_nodes(
        self,
        info: Info,
        require: RequireArgument = None,
        rank: Annotated[
            NodeRanking, strawberry.argument(description="The ranking that orders the candidates.")
        ] = NodeRanking.LEAST_LOADED,
        limit: Annotated[
            int | None,
            strawberry.argument(description="The maximum number of candidates, 0 to 1,000."),
        ] = DEFAULT_LIMIT,
    ) -> AvailableNodes:
        size = DEFAULT_LIMIT if limit is None else limit
        require_page_size(size, "limit")
        requirements = NO_REQUIREMENTS if require is None else require.to_requirements()
        return await AvailableNodes.from_snapshot(
            info.context.services.node_snapshot, requirements, rank, size
        )

    @strawberry.field(**declare(READERS, "The profiles of roles, by role, type and name."))
    async def role_profiles(
        self,
        info: Info,
        role: Annotated[
            NodeRole | None, strawberry.argument(description="Returns only profiles of this role.")
        ] = None,
        type: Annotated[
            NodeType | None, strawberry.argument(description="Returns only profiles of this type.")
        ] = None,
    ) -> list[RoleProfile]:
        async with info.context.services.database.read() as session:
            rows = await profiles.list_role_profiles(session, role, type)
        return [RoleProfile.from_row(row) for row in rows]

    @strawberry.field(
        **declare(
            READERS,
            "The change log of the nodes that the filter selects, newest first. It includes"
            " removed nodes.",
        )
    )
    async def status_changes(
        self,
        info: Info,
        filter: FilterArgument = None,
        first: First = DEFAULT_PAGE_SIZE,
        after: After = None,
    ) -> Connection[StatusChange]:
        node_filter = EVERY_NODE if filter is None else filter.to_filter()
        async with info.context.services.database.read() as session:
            page = await history.list_status_changes(
                session, node_filter, first=resolve_page_size(first), after=after
            )
        return await show_status_changes(page, after)

    @strawberry.field(
        **declare(
            ADMINS,
            "All mutations except heartbeats, with who requested them and whether they were"
            " rejected, newest first.",
        )
    )
    async def audit_log(
        self,
        info: Info,
        filter: Annotated[
            AuditFilter | None,
            strawberry.argument(
                description="The conditions that the entries must meet. If absent, all entries."
            ),
        ] = None,
        first: First = DEFAULT_PAGE_SIZE,
        after: After = None,
    ) -> AuditLogConnection:
        audit_filter = audit.EVERY_ENTRY if filter is None else filter.to_filter()
        async with info.context.services.database.read() as session:
            page = await audit.list_entries(
                session, audit_filter, first=resolve_page_size(first), after=after
            )
        return await AuditLogConnection.from_page(
            page,
            after,
            AuditEntry.from_row,
            lambda row: audit.ENTRY_KEYSET.encode_cursor(row.recorded_at, row.id),
        )
