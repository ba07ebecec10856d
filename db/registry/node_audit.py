"""Nodes as the audit log records them."""

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from db.access import audit
from db.access.audit_documents import find_changes
from db.core.identity import Caller
from db.core.tables import Node
from db.registry.status_changes import Transition

_ALWAYS = ("status", "statusReason")
"""What an entry says of a node even if it did not change."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_MEASURED = {
    *("available", "busy", "free", "idle", "latency", "load", "percent", "remaining"),
    *("temperature", "uptime", "usage", "used", "utilization"),
}
_FIXED = {"limit", "max", "maximum", "min", "minimum", "total"}


def to_document(node: Node) -> dict[str, Any]:
    """Return what an operator may see of a node, as a JSON object, without measurements.

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
        "capabilities": remove_measurements(node.capabilities),
        "metadata": remove_measurements(node.metadata_),
    }


def remove_measurements(value: Any) -> Any:
    """Return a JSON value without the numbers that are named like a measurement.

    Free memory or a load drifts all the time: it belongs into heartbeats, and describes no node.
    """
    if isinstance(value, Mapping):
        return {
            name: remove_measurements(part)
            for name, part in value.items()
            if not (_is_number(part) and _is_measurement(name))
        }
    if isinstance(value, list):
        return [remove_measurements(part) for part in value]
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_measurement(name: str) -> bool:
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & _MEASURED) and not words & _FIXED


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
    """Write an audit entry about a node: its status, and what changed."""
    if before is not None and after is not None:
        status_before, status_after = (
            {name: document[name] for name in _ALWAYS} for document in (before, after)
        )
        changed_before, changed_after = find_changes(before, after)
        before, after = changed_before | status_before, changed_after | status_after
    await audit.record_action(
        session, caller=caller, action=action, subject=node_id, before=before, after=after
    )
