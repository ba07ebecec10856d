"""Profiles: how a node is configured, on top of the defaults of its role and type.

This module reads them; `db.registry.profile_changes` writes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.core.enums import NodeRole, NodeType, ProfileType
from db.core.tables import NODE, NODE_PROFILE, ROLE_PROFILE, NodeProfile, RoleProfile
from db.core.turns import read_rows


@dataclass(frozen=True, slots=True)
class ProfileContent:
    """The content of a profile to be written."""

    name: str
    type: ProfileType
    config: Mapping[str, Any]
    enabled: bool = True

    def to_document(self) -> dict[str, Any]:
        return {"type": self.type.value, "config": self.config, "enabled": self.enabled}


@dataclass(frozen=True, slots=True)
class EffectiveProfile:
    """A profile that applies to a node, and the levels that it was merged from."""

    name: str
    type: ProfileType
    config: Any
    from_role: bool
    from_node: bool


def to_document(profile: NodeProfile | RoleProfile) -> dict[str, Any]:
    """Return the content of a profile as a JSON object; equal contents have equal objects."""
    return {
        "type": profile.profile_type.value,
        "config": profile.config,
        "enabled": profile.enabled,
    }


async def list_node_profiles(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, list[NodeProfile]]:
    """Return each node's own profiles, sorted by name."""
    found: dict[UUID, list[NodeProfile]] = {node: [] for node in nodes}
    statement = (
        select(NodeProfile)
        .where(NODE_PROFILE.node_id.in_(nodes))
        .order_by(NODE_PROFILE.node_id, NODE_PROFILE.profile_name)
    )
    for profile in await read_rows(session, statement):
        found[profile.node_id].append(profile)
    return found


async def list_role_profiles(
    session: AsyncSession, role: NodeRole | None = None, node_type: NodeType | None = None
) -> list[RoleProfile]:
    """Return the profiles of roles and types, sorted by role, type and name; None selects all."""
    statement = select(RoleProfile).order_by(
        ROLE_PROFILE.node_role, ROLE_PROFILE.node_type, ROLE_PROFILE.profile_name
    )
    if role is not None:
        statement = statement.where(ROLE_PROFILE.node_role == role)
    if node_type is not None:
        statement = statement.where(ROLE_PROFILE.node_type == node_type)
    return await read_rows(session, statement)


async def compute_effective_profiles(
    session: AsyncSession, nodes: Sequence[UUID]
) -> dict[UUID, list[EffectiveProfile]]:
    """Return each node's effective profiles, sorted by name.

    These are the enabled profiles of its role and type, with its own enabled ones merged over them.
    """
    merged: dict[UUID, dict[str, EffectiveProfile]] = {node: {} for node in nodes}
    role_rows = await session.execute(
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
    for node, profile in role_rows:
        merged[node][profile.profile_name] = EffectiveProfile(
            profile.profile_name,
            profile.profile_type,
            profile.config,
            from_role=True,
            from_node=False,
        )
    for node, own_profiles in (await list_node_profiles(session, nodes)).items():
        for profile in own_profiles:
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
        node: sorted(by_name.values(), key=lambda profile: profile.name)
        for node, by_name in merged.items()
    }


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target with a JSON Merge Patch applied (RFC 7396).

    Objects are merged, null removes a member, and anything else replaces.
    """
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged
