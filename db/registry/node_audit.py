"""Nodes as the audit log records them."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.core.identity import Caller
from db.core.tables import Node
from db.registry.status_changes import Transition

_LARGE_FIELDS = ("capabilities", "metadata")


def to_document(node: Node) -> dict[str, Any]:
    """Return what an operator may see of a node, as a JSON object.

    The boot id is left out, because anybody who knows it could pose as the agent.
    """
    return {
        "name": node.node_name,
        "role": node.node_role.value,
        "type": node.node_type.value,
        "labels": node.labels,
        "ipAddress": node.ip_address,
        "localIp": node.local_ip,
        "hostname": node.hostname,
        "status": node.status.value,
        "statusReason": node.status_reason.value,
        "maintenanceUntil": node.maintenance_until,
        "bootSince": node.boot_since,
        "capabilities": node.capabilities,
        "metadata": node.metadata_,
    }


def apply_to_document(document: Mapping[str, Any], transition: Transition) -> dict[str, Any]:
    """Return the document as it is after the transition."""
    return {
        **document,
        "status": transition.status.value,
        "statusReason": transition.reason.value,
    }


async def record_node_action(
    session: AsyncSession,
    *,
    caller: Caller,
    action: str,
    node_id: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
) -> None:
    """Write an audit entry about a node.

    Capabilities and metadata that did not change are left out: they are large, and agents register
    at each start.
    """
    if before is not None and after is not None:
        unchanged = {name for name in _LARGE_FIELDS if before[name] == after[name]}
        before = {name: value for name, value in before.items() if name not in unchanged}
        after = {name: value for name, value in after.items() if name not in unchanged}
    await audit.record_action(
        session, caller=caller, action=action, subject=node_id, before=before, after=after
    )
