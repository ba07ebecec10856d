"""Finding, listing, maintaining and removing nodes."""

from collections.abc import Sequence
from datetime import datetime
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from db.access import token_changes
from db.core.enums import NodeStatus, StatusReason
from db.core.errors import BadInput, NodeNotFound
from db.core.identity import Caller
from db.core.pagination import Keyset, Page, make_page
from db.core.tables import NODE, Node
from db.core.turns import read_rows
from db.registry import node_audit, status_changes
from db.registry.liveness_rules import LivenessRules
from db.registry.node_filter import NodeFilter
from db.registry.status_changes import Transition
from db.registry.sweep import read_status_by_heartbeats

_IS_REGISTERED = NODE.removed_at.is_(None)


class NodeOrder(Enum):
    """The columns by which a list of nodes can be sorted; ties are broken by the row's id."""

    NODE_ID = "node_id"
    NAME = "node_name"
    STATUS_SINCE = "status_since"
    REGISTERED_AT = "registered_at"

    def to_keyset(self, *, descending: bool) -> Keyset:
        type_ = datetime if self in {NodeOrder.STATUS_SINCE, NodeOrder.REGISTERED_AT} else str
        return Keyset(
            f"nodes.{self.value}.{'desc' if descending else 'asc'}",
            (getattr(Node, self.value), NODE.id),
            (type_, UUID),
            descending=descending,
        )

    def get_key(self, node: Node) -> tuple[Any, UUID]:
        return getattr(node, self.value), node.id


async def find_node(session: AsyncSession, node_id: str) -> Node | None:
    """Return the registered node of that node id, or None."""
    statement = select(Node).where(NODE.node_id == node_id, _IS_REGISTERED)
    return (await session.scalars(statement)).one_or_none()


async def find_nodes_by_uuid(session: AsyncSession, nodes: Sequence[UUID]) -> dict[UUID, Node]:
    """Return the nodes that are registered, by id; removed and unknown ones are left out."""
    rows = await read_rows(session, select(Node).where(NODE.id.in_(nodes), _IS_REGISTERED))
    return {node.id: node for node in rows}


async def list_nodes(
    session: AsyncSession,
    node_filter: NodeFilter,
    order: Keyset,
    *,
    first: int,
    after: str | None,
) -> Page[Node]:
    """Return a page of the registered nodes that match the filter.

    Raises: BadInput: `first` is out of bounds, or `after` is not a cursor of this order.
    """
    statement = order.select_page(
        select(Node).where(_IS_REGISTERED, node_filter.to_condition()), first=first, after=after
    )
    return make_page(await read_rows(session, statement), first)


async def count_nodes(session: AsyncSession, node_filter: NodeFilter) -> int:
    statement = (
        select(func.count()).select_from(Node).where(_IS_REGISTERED, node_filter.to_condition())
    )
    return (await session.scalars(statement)).one()


async def count_nodes_by_status(session: AsyncSession) -> dict[NodeStatus, int]:
    """Return the number of registered nodes of each status, 0 included."""
    rows = await session.execute(
        select(NODE.status, func.count().label("nodes")).where(_IS_REGISTERED).group_by(NODE.status)
    )
    return dict.fromkeys(NodeStatus, 0) | {row.status: row.nodes for row in rows}


async def start_maintenance(
    session: AsyncSession, node_id: str, *, note: str | None, until: datetime | None, caller: Caller
) -> Node:
    """Put a node into MAINTENANCE until an operator ends it, or until the time `until`.

    Raises: NodeNotFound: no such node is registered. BadInput: `until` lies in the past.
    """
    node = await lock_node(session, node_id)
    before = node_audit.to_document(node)
    if until is not None and until <= (await session.scalars(select(func.registry_now()))).one():
        raise BadInput("input.until", "must lie in the future")
    await session.execute(update(Node).where(NODE.id == node.id).values(maintenance_until=until))
    transition = Transition(
        node.id,
        node.status,
        NodeStatus.MAINTENANCE,
        StatusReason.MAINTENANCE_STARTED,
        caller.name,
        note,
    )
    after = {**node_audit.apply_to_document(before, transition), "maintenanceUntil": until}
    await node_audit.record_node_action(
        session,
        caller=caller,
        action="node.set_maintenance",
        node_id=node_id,
        before=before,
        after=after,
    )
    await status_changes.apply_transitions(session, [transition])
    await session.refresh(node)
    return node


async def end_maintenance(
    session: AsyncSession, node_id: str, *, rules: LivenessRules, note: str | None, caller: Caller
) -> Node:
    """End a node's maintenance; its status becomes the one that its heartbeats imply.

    Raises: NodeNotFound: no such node is registered.
    """
    node = await lock_node(session, node_id)
    before = after = node_audit.to_document(node)
    transitions = []
    if node.status is NodeStatus.MAINTENANCE:
        status = await read_status_by_heartbeats(session, node.id, rules)
        reason = StatusReason.MAINTENANCE_ENDED
        transitions = [Transition(node.id, node.status, status, reason, caller.name, note)]
        after = {**node_audit.apply_to_document(before, transitions[0]), "maintenanceUntil": None}
    await node_audit.record_node_action(
        session,
        caller=caller,
        action="node.set_maintenance",
        node_id=node_id,
        before=before,
        after=after,
    )
    if transitions:
        await status_changes.apply_transitions(session, transitions)
        await session.refresh(node)
    return node


async def deregister(
    session: AsyncSession, node_id: str, *, note: str | None, caller: Caller
) -> int:
    """Remove a node and return the revision of the change; its history is kept.

    The token that it got by enrolment is revoked.

    Raises: NodeNotFound: no such node is registered.
    """
    node = await lock_node(session, node_id)
    await token_changes.revoke_enrolled_tokens(session, node_id)
    await node_audit.record_node_action(
        session,
        caller=caller,
        action="node.deregister",
        node_id=node_id,
        before=node_audit.to_document(node),
        after=None,
    )
    await session.execute(
        update(Node).where(NODE.id == node.id).values(removed_at=func.registry_now())
    )
    reason = StatusReason.DEREGISTERED
    transition = Transition(node.id, node.status, NodeStatus.OFFLINE, reason, caller.name, note)
    return await status_changes.apply_transitions(session, [transition])


async def lock_node(session: AsyncSession, node_id: str) -> Node:
    """Lock a node's row for this transaction and return it.

    Raises: NodeNotFound: no such node is registered.
    """
    statement = select(Node).where(NODE.node_id == node_id, _IS_REGISTERED).with_for_update()
    node = (await session.scalars(statement)).one_or_none()
    if node is None:
        raise NodeNotFound(node_id)
    return node
