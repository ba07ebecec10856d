"""Registration: how a run of an agent takes hold of a node id."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from db.access.audit_documents import encode
from db.access.node_bounds import require_allowed_registration
from db.core.enums import NodeRole, NodeStatus, NodeType, StatusReason
from db.core.errors import NodeIdTaken, Unavailable
from db.core.identity import Caller
from db.core.tables import NODE, Node
from db.registry import node_audit, status_changes
from db.registry.flapping import damp_flapping
from db.registry.liveness_rules import LivenessRules
from db.registry.node_limits import CHANGE_BYTES, UNLIMITED, NodeLimits
from db.registry.profile_changes import (
    find_changed_profiles,
    write_profiles,
    write_registered_profiles,
)
from db.registry.profiles import ProfileContent
from db.registry.status_changes import Transition
from db.registry.sweep import OVERDUE_AT

_ATTEMPTS = 5
_REGISTER_ACTION = "node.register"
_IS_REGISTERED = NODE.removed_at.is_(None)


@dataclass(frozen=True, slots=True)
class Registration:
    """The description of a node by its agent. None keeps the stored value."""

    role: NodeRole
    type: NodeType
    boot_id: str
    node_id: str | None = None
    name: str | None = None
    labels: Sequence[str] | None = None
    ip_address: str | None = None
    local_ip: str | None = None
    hostname: str | None = None
    capabilities: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    profiles: Sequence[ProfileContent] = ()
    replaces_boot_id: str | None = None

    def to_columns(self) -> dict[str, Any]:
        """Return the attributes of Node that the registration sets, with their values."""
        optional = {
            "node_name": self.name,
            "labels": None if self.labels is None else list(self.labels),
            "ip_address": self.ip_address,
            "local_ip": self.local_ip,
            "hostname": self.hostname,
            "capabilities": self.capabilities,
            "metadata_": self.metadata,
        }
        present = {column: value for column, value in optional.items() if value is not None}
        return {"node_role": self.role, "node_type": self.type, **present}


async def register(
    session: AsyncSession,
    registration: Registration,
    *,
    rules: LivenessRules,
    caller: Caller,
    limits: NodeLimits = UNLIMITED,
) -> tuple[Node, bool]:
    """Register a node, new or known; return it as it is afterwards, and whether it is new.

    If two runs register the same new id at once, one creates the node and the other finds it. One
    that changes nothing writes no audit entry.

    Raises: NodeIdTaken: another run of an agent holds the id and still sends heartbeats.
    RateLimited: the node changes more than the limits allow. Unavailable: no free node id was
    found in several attempts. Forbidden: the caller's token is bound to another role or type, or
    to other labels. Unauthenticated: the token has ended.
    """
    await require_allowed_registration(
        session, caller.identity, registration.role, registration.type, registration.labels
    )
    for attempt in range(_ATTEMPTS):
        existing = await _lock_existing(session, registration)
        if existing is not None:
            node = await _update_node(session, existing, registration, rules, caller, limits=limits)
            return node, False
        created = await _create_node(session, registration, rules, caller, plain_id=attempt == 0)
        if created is not None:
            return created, True
    raise Unavailable(retry_after_seconds=1)


async def _lock_existing(session: AsyncSession, registration: Registration) -> Node | None:
    if registration.node_id is not None:
        condition = NODE.node_id == registration.node_id
    else:
        # The reply to an agent's first registration may get lost; its boot id finds the node again.
        await session.execute(
            select(func.pg_advisory_xact_lock(func.hashtextextended(registration.boot_id, 0)))
        )
        condition = NODE.boot_id == registration.boot_id
    return (
        await session.scalars(
            select(Node)
            .where(condition, _IS_REGISTERED)
            .order_by(NODE.id)
            .limit(1)
            .with_for_update()
        )
    ).first()


async def _create_node(
    session: AsyncSession,
    registration: Registration,
    rules: LivenessRules,
    caller: Caller,
    *,
    plain_id: bool,
) -> Node | None:
    node_id = registration.node_id or _make_node_id(registration.hostname, plain=plain_id)
    node = (
        await session.scalars(
            insert(Node)
            .values(
                node_id=node_id,
                status=NodeStatus.ONLINE,
                status_reason=StatusReason.REGISTERED,
                boot_id=registration.boot_id,
                boot_since=func.registry_now(),
                heard_at=func.registry_now(),
                heartbeat_interval_seconds=rules.draw_interval(),
                **{"node_name": node_id, **registration.to_columns()},
            )
            .on_conflict_do_nothing(index_elements=[NODE.node_id], index_where=_IS_REGISTERED)
            .returning(Node)
        )
    ).one_or_none()
    if node is None:
        return None
    await node_audit.record_node_action(
        session,
        caller=caller,
        action=_REGISTER_ACTION,
        node_id=node.node_id,
        before=None,
        after=node_audit.to_document(node),
    )
    await write_registered_profiles(
        session, node.id, node.node_id, registration.profiles, caller=caller
    )
    await status_changes.apply_transitions(
        session,
        [Transition(node.id, None, NodeStatus.ONLINE, StatusReason.REGISTERED, caller.name)],
    )
    await session.refresh(node)
    return node


async def _update_node(
    session: AsyncSession,
    node: Node,
    registration: Registration,
    rules: LivenessRules,
    caller: Caller,
    *,
    limits: NodeLimits,
) -> Node:
    # Without what is the same: PostgreSQL would write it again, with its index entries.
    changed = {
        column: value
        for column, value in registration.to_columns().items()
        if encode(value) != encode(getattr(node, column))
    }
    values: dict[str, Any] = {
        "heard_at": func.greatest(NODE.heard_at, func.registry_now()),
        "updated_at": func.registry_now(),
        "heartbeat_interval_seconds": rules.draw_interval(),
        "reported_degraded": False,
        **changed,
    }
    profiles = await find_changed_profiles(session, node.id, node.node_id, registration.profiles)
    if node.boot_id != registration.boot_id:
        await _require_silent_holder(session, node, registration, rules)
        values |= {
            "boot_id": registration.boot_id,
            "boot_since": func.registry_now(),
            "last_sequence": None,
        }
    if changed or profiles or "boot_id" in values:
        contents = [*changed.values(), *(profile.content.config for profile in profiles)]
        now = (await session.scalars(select(func.registry_now()))).one()
        values |= limits.charge_change(
            node,
            now,
            CHANGE_BYTES * (1 + len(profiles)) + sum(len(encode(content)) for content in contents),
            is_restart=not contents,
        )
    before = node_audit.to_document(node)
    written = await session.scalars(
        update(Node).where(NODE.id == node.id).values(values).returning(Node),
        execution_options={"populate_existing": True},
    )
    node = written.one()
    after = node_audit.to_document(node)
    transitions: list[Transition] = []
    is_flapping = node.status_reason is StatusReason.FLAPPING
    if node.status not in {NodeStatus.ONLINE, NodeStatus.MAINTENANCE} and not is_flapping:
        reason = StatusReason.REGISTERED
        online = Transition(node.id, node.status, NodeStatus.ONLINE, reason, caller.name)
        transitions = await damp_flapping(session, [online], rules)
        after = node_audit.apply_to_document(after, transitions[0])
    if encode(before) != encode(after):
        await node_audit.record_node_action(
            session,
            caller=caller,
            action=_REGISTER_ACTION,
            node_id=node.node_id,
            before=before,
            after=after,
        )
    await write_profiles(session, profiles, caller=caller)
    if transitions:
        await status_changes.apply_transitions(session, transitions)
        await session.refresh(node)
    return node


_CHECK_HOLDER = text(f"""
SELECT extract(epoch FROM {OVERDUE_AT} - registry_now()) AS silent_in,
       n.boot_id = :replaces_boot_id AND coalesce(n.hostname, host(n.local_ip)) IS NOT NULL
       AND n.hostname IS NOT DISTINCT FROM CAST(:hostname AS text)
       AND n.local_ip IS NOT DISTINCT FROM CAST(:local_ip AS inet) AS restarted
FROM nodes n, registry_state s WHERE n.id = :id
""")  # noqa: S608  # nothing in it comes from outside


async def _require_silent_holder(
    session: AsyncSession, node: Node, registration: Registration, rules: LivenessRules
) -> None:
    """Raise NodeIdTaken while the run that holds the id still sends heartbeats.

    Two machines may claim one id, e.g. after a disk was cloned; the one that is heard keeps it. An
    agent that was restarted names its previous run, from the same host and address, and need not
    wait until that run counts as silent.
    """
    if node.boot_id is None:
        return
    claim = {
        "replaces_boot_id": registration.replaces_boot_id,
        "hostname": registration.hostname,
        "local_ip": registration.local_ip,
    }
    holder = (
        await session.execute(_CHECK_HOLDER, {"grace": rules.grace, "id": node.id, **claim})
    ).one()
    if holder.silent_in > 0 and not holder.restarted:
        raise NodeIdTaken(
            node.node_id,
            holder_hostname=node.hostname,
            holder_address=node.ip_address or node.local_ip,
            held_since=node.boot_since,
            retry_after_seconds=float(holder.silent_in),
        )


def _make_node_id(hostname: str | None, *, plain: bool) -> str:
    stem = re.sub(r"[^a-z0-9.-]+", "-", (hostname or "").lower()).strip("-.")[:200] or "node"
    return stem if plain else f"{stem}-{secrets.token_hex(3)}"
