"""Profiles: what a node is set up to do, and what its role says it starts from.

`db.registry.profile_changes` writes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.enums import NodeRole, NodeType, ProfileType
from db.core.tables import NODE, NODE_PROFILE, ROLE_PROFILE, NodeProfile, RoleProfile


@dataclass(frozen=True, slots=True)
class ProfileContent:
    name: str
    type: ProfileType
    config: Mapping[str, Any]
    enabled: bool = True

    def to_document(self) -> dict[str, Any]:
        return {"type": self.type.value, "config": self.config, "enabled": self.enabled}


@dataclass(frozen=True, slots=True)
class EffectiveProfile:
    name: str
    type: ProfileType
    config: Any
    from_role: bool
    from_node: bool


def to_document(profile: NodeProfile | RoleProfile) -> dict[str, Any]:
    """What a profile says, as JSON; two that are equal say the same."""
    return {
        "type": profile.profile_type.value,
        "config": profile.config,
        "enabled": profile.enabled,
    }


async def list_node_profiles(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, list[NodeProfile]]:
    """Each node's own profiles, by name."""
    found: dict[UUID, list[NodeProfile]] = {node: [] for node in nodes}
    rows = await session.scalars(
        select(NodeProfile)
        .where(NODE_PROFILE.node_id.in_(nodes))
        .order_by(NODE_PROFILE.node_id, NODE_PROFILE.profile_name)
    )
    for profile in rows:
        found[profile.node_id].append(profile)
    return found


async def list_role_profiles(
    session: AsyncSession, role: NodeRole | None = None, node_type: NodeType | None = None
) -> list[RoleProfile]:
    """By role, type and name."""
    statement = select(RoleProfile).order_by(
        ROLE_PROFILE.node_role, ROLE_PROFILE.node_type, ROLE_PROFILE.profile_name
    )
    if role is not None:
        statement = statement.where(ROLE_PROFILE.node_role == role)
    if node_type is not None:
        statement = statement.where(ROLE_PROFILE.node_type == node_type)
    return list(await session.scalars(statement))


async def compute_effective_profiles(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, list[EffectiveProfile]]:
    """For each node, by name: its role's enabled profiles with its own enabled ones merged over."""
    merged: dict[UUID, dict[str, EffectiveProfile]] = {node: {} for node in nodes}
    of_role = await session.execute(
        select(NODE.id, RoleProfile)
        .join(
            RoleProfile,
            and_(
                ROLE_PROFILE.node_role == NODE.node_role,
                ROLE_PROFILE.node_type == NODE.node_type,
                ROLE_PROFILE.enabled,
            ),
        )
        .where(NODE.id.in_(nodes))
    )
    for node, profile in of_role:
        merged[node][profile.profile_name] = EffectiveProfile(
            profile.profile_name,
            profile.profile_type,
            profile.config,
            from_role=True,
            from_node=False,
        )
    for node, own in (await list_node_profiles(session, nodes)).items():
        for profile in own:
            if profile.enabled:
                base = merged[node].get(profile.profile_name)
                merged[node][profile.profile_name] = EffectiveProfile(
                    profile.profile_name,
                    profile.profile_type,
                    merge_patch(base.config if base else {}, profile.config),
                    from_role=base is not None,
                    from_node=True,
                )
    return {
        node: sorted(found.values(), key=lambda profile: profile.name)
        for node, found in merged.items()
    }


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch, RFC 7396: objects merge, null removes, anything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
